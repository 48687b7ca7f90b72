"""What runs inside the sandbox: standard library only, and nothing of the rest of aperto.

The folder is mounted in the sandbox by itself, so its files import each other relatively.
"""
