"""
The cipher of personal data: AES-256-GCM, by the package ``cryptography``.

Nothing else imports that package, and this module is imported when the cipher is first needed: a
project without personal data need not have it.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["AESGCM", "InvalidTag"]
