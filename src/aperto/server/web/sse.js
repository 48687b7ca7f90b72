// Server-sent events out of a stream of bytes.

/** Yields the data of every event in a response body. */
export async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      yield* events(lines);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Data of the complete lines; the server writes each event's data on one line. */
function* events(lines) {
  for (const line of lines) {
    if (line.startsWith("data:")) yield line.slice(5).trimStart();
  }
}
