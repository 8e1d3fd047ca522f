"""The web page's gallery, and the audit of the page in a browser."""
