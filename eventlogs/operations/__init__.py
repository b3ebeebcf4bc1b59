"""Jobs over many logs: verification, export and import, figures, health."""
