// Ctrl/Cmd+Enter sends in the chat and fills in the editor. Capture phase: the editor would otherwise take the
// keys for a new line.
const actions = { "#chat-box": "#chat-box .submit-button", "#complete-pane": "#fill" };
document.addEventListener(
  "keydown",
  (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const place = Object.keys(actions).find((selector) => event.target.closest?.(selector));
    if (!place) return;
    event.preventDefault();
    event.stopPropagation();
    document.querySelector(actions[place])?.click();
  },
  true,
);
