// A server that goes away breaks Gradio's requests. Gradio then gives the page up: it takes no more events, and
// reloads once a server is back, without the conversation. So it is told of an error instead: the event at work
// fails, the pane says so (`.failure` of its events), and the page can be used again.
const ask = window.fetch;
window.fetch = async (address, options) => {
  const { pathname } = new URL(address.url ?? address, location.href);
  if (!pathname.includes("/gradio_api/")) return ask(address, options);
  // Gradio counts a stopped event as failed, too; see `lost` in status.py.
  if (pathname.endsWith("/cancel")) window.stoppedByReader = true;
  if (pathname.endsWith("/queue/join")) window.stoppedByReader = false;
  const left = () => options?.signal?.aborted; // by the page itself
  let response;
  try {
    response = await ask(address, options);
  } catch (error) {
    if (left()) throw error;
    return Response.json({ detail: "The connection to the server is gone." }, { status: 503 });
  }
  if (!response.ok || !pathname.endsWith("/queue/data")) return response;
  const reader = response.body.getReader();
  const ending = [{ msg: "unexpected_error", message: "no connection", success: false }, { msg: "close_stream" }];
  const body = new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (error) {
        if (left()) return controller.error(error);
        const events = ending.map((each) => `\n\ndata: ${JSON.stringify(each)}\n\n`).join("");
        controller.enqueue(new TextEncoder().encode(events));
        controller.close();
      }
    },
    cancel: (reason) => reader.cancel(reason),
  });
  return new Response(body, { status: response.status, headers: response.headers });
};
