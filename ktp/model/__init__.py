"""The words of the field as frozen data: what was captured, what it means, what was answered.

Standard library only; no input or output; imports nothing of ktp but `ktp.errors`.
"""
