"""Bytes to facts: headers, text, keywords, Maildir names. Pure: no files, no clock, no database.

May import ids and errors. The one rule: nothing here raises on bad mail.
"""
