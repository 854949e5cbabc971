"""What `rrtf-serve` prints once it answers."""

from __future__ import annotations


def banner(
    name: str, address: str, *, page: bool, keys: bool, infill: bool, others: tuple[str, ...] = ()
) -> str:
    """What a newcomer needs next: the addresses, and three ways to use them by copy and paste."""
    key = "YOUR_KEY" if keys else "none"
    header = " -H 'Authorization: Bearer YOUR_KEY'" if keys else ""
    body = f'{{"model": "{name}", "prompt": "def fib(n):\\n    ", '
    body += '"suffix": "\\n\\nprint(fib(10))", ' if infill else ""
    body += '"max_tokens": 64, "temperature": 0}'
    lines = [
        f"{name} is ready.",
        *([f"  also  {', '.join(others)}, loaded when asked for"] if others else []),
        f"  API   {address}/v1",
        *([f"  page  {address}/ui"] if page else []),
        "",
        "curl:",
        f"  curl {address}/v1/completions{header} -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
        "",
        "OpenAI SDK (pip install openai):",
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{address}/v1", api_key="{key}")',
        f'  chat = client.chat.completions.create(model="{name}",',
        '      messages=[{"role": "user", "content": "Reverse a string in Python."}])',
        "  print(chat.choices[0].message.content)",
        "",
        "Editor (Continue, ~/.continue/config.yaml):",
        "  models:",
        f"    - name: {name}",
        "      provider: openai",
        f"      model: {name}",
        f"      apiBase: {address}/v1",
        f"      apiKey: {key}",
        "      roles: [chat, edit, autocomplete]" if infill else "      roles: [chat, edit]",
        "",
        "Ctrl-C stops the server.",
    ]
    return "\n".join(lines)
