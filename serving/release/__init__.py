"""Which package each stage wants, who decided it and on what evidence."""
