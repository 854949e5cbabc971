// Ctrl/Cmd+Enter fills. Capture phase: the editor would otherwise take the keys for a new line.
document.addEventListener(
  "keydown",
  (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    if (!event.target.closest?.("#complete-pane")) return;
    event.preventDefault();
    event.stopPropagation();
    document.querySelector("#fill")?.click();
  },
  true,
);
