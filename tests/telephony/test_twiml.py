import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.telephony import twiml

STREAM = "wss://bot.example.com/twilio/stream"
AFTER = "https://bot.example.com/twilio/after-stream"


def test_connect_stream_is_exact() -> None:
    assert twiml.connect_stream(STREAM, "v1.1.n.m", AFTER) == (
        '<?xml version="1.0" encoding="UTF-8"?><Response>'
        f'<Connect><Stream url="{STREAM}"><Parameter name="token" value="v1.1.n.m" /></Stream></Connect>'
        f'<Redirect method="POST">{AFTER}</Redirect>'
        "</Response>"
    )


@pytest.mark.parametrize("url", [f"{STREAM}?token=x", f"{STREAM}?"])
def test_a_query_that_twilio_would_drop_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="query"):
        twiml.connect_stream(url, "t", AFTER)


def test_a_parameter_stays_under_500_characters() -> None:
    assert "x" * 494 in twiml.connect_stream(STREAM, "x" * 494, AFTER)
    with pytest.raises(ValueError, match="500"):
        twiml.connect_stream(STREAM, "x" * 495, AFTER)


@pytest.mark.parametrize(
    ("document", "body"),
    [
        (twiml.decline("지금은 <통화>할 수 없습니다 & 'x'.", "ko-KR"),
         "<Say language=\"ko-KR\">지금은 &lt;통화&gt;할 수 없습니다 &amp; 'x'.</Say><Hangup />"),
        (twiml.decline("Please call later.", "en-US"), '<Say language="en-US">Please call later.</Say><Hangup />'),
        (twiml.reject_busy(), '<Reject reason="busy" />'),
        (twiml.hang_up(), "<Hangup />"),
    ],
)  # fmt: skip
def test_the_short_answers_are_exact(document: str, body: str) -> None:
    assert document == f'<?xml version="1.0" encoding="UTF-8"?><Response>{body}</Response>'


@given(text=st.text())
def test_any_text_makes_a_document_that_can_be_read(text: str) -> None:
    say = ET.fromstring(twiml.decline(text, "ko-KR").encode()).find("Say")
    assert say is not None
    spoken = say.text or ""
    kept = text.replace("\r\n", "\n").replace("\r", "\n")  # as every XML parser does
    assert spoken == "".join(c for c in kept if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff"
                                                                 and not "\ud800" <= c <= "\udfff"))  # fmt: skip
