"""Passages of a document that a question's attention points at, without generating anything."""
