"""`rag mcp`: an index as read-only tools of the Model Context Protocol, over stdio or HTTP on this machine.

`library` is what the tools do, `schemas` what they give back, `server` registers them and runs the transports. The SDK
(the package mcp) is imported by `server` only.
"""
