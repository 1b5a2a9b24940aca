"""Texts with known answers: labelled sets, made-up biographies, words with their first letters."""
