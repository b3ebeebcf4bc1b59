"""
The documentation as a site: ``sphinx-build -W docs OUTPUT``, or ``tox -e docs``.

The pages are plain Markdown, which a code host shows as it is. What only a site has is made while
it is built, by docs/extensions/: its navigation, the reference, and llms.txt. A build reads no
other site, so it needs no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import django
from django.conf import settings
from pygments.lexers.sql import PostgresLexer
from sphinx.highlighting import lexers

DOCS = Path(__file__).parent
# Of this checkout, also where another version is installed.
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions")]

import eventlogs  # noqa: E402

# Docstrings are read from modules that are imported, and models need a project.
settings.configure(
    SECRET_KEY="only-here",
    USE_TZ=True,
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "eventlogs",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ":memory:",
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    },
)
django.setup()

project = "eventlogs"
author = "the authors of eventlogs"
version = release = eventlogs.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    # In docs/extensions/.
    "navigation",
    "reference",
    "llms",
]
exclude_patterns = ["extensions", "static", "templates"]

# Markdown: links to headings as a code host makes them.
myst_heading_anchors = 6
myst_enable_extensions = ["attrs_inline"]

# The reference.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 110
add_module_names = True
toc_object_entries_show_parents = "hide"
highlight_language = "default"
lexers["sql"] = PostgresLexer()

# "$ " and what a command prints are not copied.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"
copybutton_here_doc_delimiter = "EOF"

html_theme = "furo"
html_title = f"eventlogs {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7db9e8", "color-brand-content": "#7db9e8"},
}
