"""The endpoints as MCP tools, by MCP's own client (skipped where `mcp` is not installed)."""

import asyncio

import pytest

from tests.browser.conftest import app

pytest.importorskip("mcp")
streamable_http = pytest.importorskip("mcp.client.streamable_http")
mcp = pytest.importorskip("mcp")


async def asked(url):
    """The tools, an answer, and what bad input gives."""
    async with (
        streamable_http.streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _),
        mcp.ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = (await session.list_tools()).tools
        prompt = "You see a boss shout at a cleaner."
        good = await session.call_tool("steer", {"prompt": prompt, "alpha": 1.5, "tokens": 8})
        bad = await session.call_tool("steer", {"prompt": prompt, "alpha": 1e9})
        return {tool.name: tool for tool in tools}, good, bad


def test_every_action_is_a_tool(tmp_path):
    with app(tmp_path, "--model", "demo") as url:
        tools, good, bad = asyncio.run(asked(url))
    assert {"describe", "steer", "profile", "sweep", "launch", "watch", "cancel", "runs"} <= set(tools)
    assert tools["steer"].inputSchema["properties"]["alpha"]["description"].startswith("Dose in units of c*")
    assert not good.isError
    assert "'steered'" in good.content[0].text
    assert bad.isError
    assert "alpha" in bad.content[0].text
