"""Loading, shared-prefix scoring and sampling."""
