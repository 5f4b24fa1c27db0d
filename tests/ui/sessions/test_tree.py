"""The store against a simple model of it: sessions as dictionaries of messages, in memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from offload.errors import SessionNotFound
from ui.sessions import SessionStore


@dataclass
class Node:
    parent: int | None
    role: str
    content: str
    finish_reason: str | None


@dataclass
class Tree:
    """One session; the keys of ``nodes`` are ids, in the order of creation."""

    nodes: dict[int, Node] = field(default_factory=dict)
    leaf: int | None = None

    def branch(self, node: int | None) -> list[int]:
        return [] if node is None else [*self.branch(self.nodes[node].parent), node]

    def siblings(self, node: int) -> list[int]:
        return [other for other in self.nodes if self.nodes[other].parent == self.nodes[node].parent]

    def newest_leaf(self, node: int) -> int:
        parents = {other.parent for other in self.nodes.values()}
        return [leaf for leaf in self.nodes if leaf not in parents and node in self.branch(leaf)][-1]


class Sessions(RuleBasedStateMachine):
    """Adds, edits, branches, selects, deletes and reopens."""

    sessions = Bundle("sessions")
    words = strategies.sampled_from(["sky", "blue", "bread", "Sky high", ""])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "sessions.db"
        self.store = SessionStore.open(self.path)
        self.trees: dict[int, Tree] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def pick(self, data: strategies.DataObject, session: int) -> int | None:
        nodes = list(self.trees[session].nodes)
        return data.draw(strategies.sampled_from(nodes)) if nodes else None

    def put(self, session: int, parent: int | None, role: str, content: str, reason: str | None) -> None:
        message = self.store.add(session, parent, role, content, reason)
        self.trees[session].nodes[message.id] = Node(parent, role, content, reason)
        self.trees[session].leaf = message.id

    @rule(target=sessions)
    def create(self) -> int:
        session = self.store.create("title").id
        self.trees[session] = Tree()
        return session

    @rule(session=sessions, role=strategies.sampled_from(["user", "assistant"]), content=words)
    def reply(self, session: int, role: str, content: str) -> None:
        self.put(session, self.trees[session].leaf, role, content, None)

    @rule(session=sessions, data=strategies.data(), content=words)
    def edit(self, session: int, data: strategies.DataObject, content: str) -> None:
        node = self.pick(data, session)
        if node is not None:
            old = self.trees[session].nodes[node]
            self.put(session, old.parent, old.role, content, "stop")

    @rule(session=sessions, data=strategies.data())
    def branch_off(self, session: int, data: strategies.DataObject) -> None:
        self.put(session, self.pick(data, session), "user", "branch", None)

    @rule(session=sessions, data=strategies.data())
    def select(self, session: int, data: strategies.DataObject) -> None:
        node = self.pick(data, session)
        if node is not None:
            self.trees[session].leaf = self.trees[session].newest_leaf(node)
            assert self.store.select(session, node).leaf == self.trees[session].leaf

    @rule(session=sessions, data=strategies.data(), text=words)
    def write(self, session: int, data: strategies.DataObject, text: str) -> None:
        node = self.pick(data, session)
        if node is not None:
            self.store.append(node, text)
            self.trees[session].nodes[node].content += text

    @rule(session=sessions, data=strategies.data(), text=words)
    def replace(self, session: int, data: strategies.DataObject, text: str) -> None:
        node = self.pick(data, session)
        if node is not None:
            self.store.replace(node, text)
            self.trees[session].nodes[node].content = text

    @rule(session=sessions, data=strategies.data(), reason=strategies.sampled_from(["stop", "length", "stopped"]))
    def finish(self, session: int, data: strategies.DataObject, reason: str) -> None:
        node = self.pick(data, session)
        if node is not None:
            self.store.finish(node, reason, {"n": node})
            self.trees[session].nodes[node].finish_reason = reason

    @rule(session=consumes(sessions))
    def delete(self, session: int) -> None:
        self.store.delete(session)
        for node in self.trees.pop(session).nodes:
            try:
                self.store.message(node)
            except SessionNotFound:
                continue
            raise AssertionError(f"message {node} is still there")

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = SessionStore.open(self.path)
        for tree in self.trees.values():
            for node in tree.nodes.values():
                if node.role == "assistant" and node.finish_reason is None:
                    node.finish_reason = "interrupted"

    @invariant()
    def same(self) -> None:
        assert {session.id for session in self.store.sessions()} == set(self.trees)
        for number, tree in self.trees.items():
            session = self.store.get(number)
            assert (session.leaf, session.messages) == (tree.leaf, len(tree.nodes))
            kept = {
                message.id: Node(message.parent, message.role, message.content, message.finish_reason)
                for message in self.store.messages(number)
            }
            assert kept == tree.nodes
            assert [message.id for message in self.store.path(tree.leaf)] == tree.branch(tree.leaf)
            for node in tree.nodes:
                assert [message.id for message in self.store.siblings(node)] == tree.siblings(node)

    @invariant()
    def found(self) -> None:
        whole = {
            number
            for tree in self.trees.values()
            for number, node in tree.nodes.items()
            if (node.role == "user" or node.finish_reason) and "sky" in node.content.lower()
        }
        hits = {hit.message.id for hit in self.store.search("sk", limit=1000)}
        assert hits <= whole
        # "breadsky" has no word that begins with "sk".
        assert {number for number in whole if self.store.message(number).content.lower().startswith("sky")} <= hits


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
