"""The toybox."""
