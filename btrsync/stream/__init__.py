"""The bytes of a send stream: head, commands, what a server lets pass. Blocks in, values and blocks out."""
