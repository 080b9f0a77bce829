def draw(e, c, p):
    p.write_bytes(b"0" * 20000)
