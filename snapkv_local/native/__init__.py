"""The native library through ctypes, and the only code that calls it."""
