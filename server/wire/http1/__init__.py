"""HTTP/1.1 on httptools: requests whole or streamed, answers in order, every size and wait bounded.

It carries the REST protocol, metrics and control's admin API.
"""
