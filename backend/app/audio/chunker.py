"""Arbitrary pieces of bytes in, frames of one exact size out."""


class Chunker:
    """Keeps the remainder between pushes, so how a stream was cut on its way cannot be seen behind it."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a frame has at least one byte, not {size}")
        self.size = size
        self._rest = b""

    def push(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, in order; none is ever shorter or longer than `size`."""
        data = self._rest + data
        whole = len(data) - len(data) % self.size
        self._rest = data[whole:]
        return [data[at : at + self.size] for at in range(0, whole, self.size)]

    def flush(self, pad: bytes) -> bytes | None:
        """The kept remainder filled up with `pad` (silence: 0xFF in mu-law, 0x00 in PCM), else None."""
        if not self._rest:
            return None
        missing = self.size - len(self._rest)
        frame = self._rest + (pad * -(-missing // len(pad)))[:missing]
        self._rest = b""
        return frame
