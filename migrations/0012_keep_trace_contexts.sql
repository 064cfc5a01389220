-- What an execution is a part of, for those who trace it: the W3C trace context of whoever started it, its traceparent, and
-- after a space its tracestate if it has one. Null for those that nobody traced when they were started, or that SQL started.
ALTER TABLE {schema}.zart_executions ADD COLUMN trace_context text;
