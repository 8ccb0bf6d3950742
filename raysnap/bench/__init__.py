"""Timed searches, cold or warm, and the machine that they run on."""
