"""The plumbing: nobody has to read it to understand the idea."""
