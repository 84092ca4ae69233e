"""What both servers are given to do. Knows nothing of ours, so that the floor may build on it."""

SENTENCES = ("지금 바로 확인해 드리겠습니다.", " 영업시간은 오전 아홉 시부터예요.", " 또 궁금하신 점 있으세요?")
SENTENCE_S = 1.5
RATE = 8_000
FRAME_MS = 20
FRAME_BYTES = RATE * FRAME_MS // 1000
END_SILENCE_MS = 350
"""FINAL_FLUSH_SILENCE_MS, by its default."""

_PERIOD = bytes([0x9F] * 10 + [0x1F] * 10)  # a square wave of 400 Hz, 12 dB under full scale, in mu-law

SENTENCE_MULAW = _PERIOD * round(SENTENCE_S * RATE / len(_PERIOD))
"""Audible from its first sample to its last."""
