// Server-sent events of a response's body: https://html.spec.whatwg.org/multipage/server-sent-events.html

/**
 * Reads the events of a stream of bytes.
 * @param {ReadableStream<Uint8Array>} stream the body
 * @yields {{type: string, data: string}}
 */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let type = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      // A line feed may still follow a carriage return at the end of this chunk.
      const end = rest.endsWith("\r") ? rest.length - 1 : rest.length;
      const lines = rest.slice(0, end).split(/\r\n|\n|\r/);
      rest = lines.pop() + rest.slice(end);
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield { type: type || "message", data: data.join("\n") };
          type = "";
          data = [];
          continue;
        }
        const colon = line.indexOf(":");
        const name = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (name === "event") type = text;
        else if (name === "data") data.push(text);
      }
    }
  } finally {
    // Closes the connection if the reader of the events stops early.
    await reader.cancel().catch(() => {});
  }
}
