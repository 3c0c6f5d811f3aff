"""Searches over parameters: what varies, the study that workers share, and a trial's execution."""
