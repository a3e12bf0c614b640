"""Files a finished network is shipped in, and reports on them."""
