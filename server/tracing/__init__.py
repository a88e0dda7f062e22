"""Where a request comes from and where its time goes: W3C trace context, sampling, spans, OTLP."""
