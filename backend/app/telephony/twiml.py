"""The TwiML documents that we answer webhooks with. Source: www.twilio.com/docs/voice/twiml."""

import re

from twilio.twiml.voice_response import Connect, Stream, VoiceResponse

MAX_PARAMETER_CHARS = 500
TOKEN_PARAMETER = "token"

# What XML 1.0 cannot hold in any form; the library writes it as it is, and Twilio then drops the whole document.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def connect_stream(stream_url: str, token: str, after_url: str) -> str:
    """Connect the call to our media stream; `after_url` is asked for what comes when we have closed the socket.

    ValueError for a URL with a query (Twilio dials without it) and for a token that no `<Parameter>` can hold.
    """
    if "?" in stream_url:
        raise ValueError("a stream URL has no query: Twilio drops it")
    if len(TOKEN_PARAMETER) + len(token) >= MAX_PARAMETER_CHARS:
        raise ValueError(f"a parameter's name and value stay under {MAX_PARAMETER_CHARS} characters together")
    stream = Stream(url=stream_url)
    stream.parameter(name=TOKEN_PARAMETER, value=token)
    connect = Connect()
    connect.append(stream)
    response = VoiceResponse()
    response.append(connect)
    response.redirect(after_url, method="POST")
    return str(response)


def decline(text: str, language: str) -> str:
    """Say a sentence and hang up. `language` is a tag such as `ko-KR`."""
    response = VoiceResponse()
    response.say(_NOT_XML.sub("", text), language=language)
    response.hangup()
    return str(response)


def reject_busy() -> str:
    """The busy tone, without answering: as the first verb it costs the caller nothing."""
    response = VoiceResponse()
    response.reject(reason="busy")
    return str(response)


def hang_up() -> str:
    response = VoiceResponse()
    response.hangup()
    return str(response)
