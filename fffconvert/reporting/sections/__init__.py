"""The sections of a report: each shows what the folders hold, or names the command that makes it."""
