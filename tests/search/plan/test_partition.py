"""Partitions: everything runs once and after what it needs, on few workers as on many; the bound is kept to."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.search.plan.costs import Costs, Rates, block_key
from raysnap.search.plan.dealing import deal
from raysnap.search.plan.dispatch import MAX_OPEN_WAVES, Dispatcher, Task, play
from raysnap.search.plan.partition import split_waves
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.simulation import choose_partition, held_after, simulate
from raysnap.search.plan.tree import needed_nodes
from tests.support.search_trees import NUM_BLOCKS, star, tree_of

CHEAP_HANDOVER = Rates(handover_bytes_per_s=1e15)
paths = st.lists(st.lists(st.integers(0, 2), min_size=NUM_BLOCKS, max_size=NUM_BLOCKS), min_size=1, max_size=8)
cuts = st.sampled_from([math.inf, 1.0, 0.5, 0.1, 0.01])


def dealt(tree, num_items, num_workers, cut, share, rates=CHEAP_HANDOVER, given=(), wave_items=4):
    costs = Costs.of(tree, needed_nodes(tree, range(len(tree.candidates)), given), rates)
    fair_s = costs.total_s(num_items) / num_workers
    waves = split_waves(num_items, wave_items)
    return costs, deal(costs, num_workers, waves, fair_s * cut, fair_s * share)


def runs_of(partition):
    """How often each node runs on each wave."""
    counts = {}
    for piece in partition.pieces:
        for node in piece.nodes:
            for wave in piece.waves:
                counts[node, wave] = counts.get((node, wave), 0) + 1
    return counts


@settings(max_examples=60)
@given(paths, st.integers(1, 30), st.integers(1, 5), cuts, cuts)
def test_every_node_runs_once_if_handovers_are_free(digits, num_items, num_workers, cut, share):
    tree = tree_of(digits)
    costs, partition = dealt(tree, num_items, num_workers, cut, share)
    assert [item for wave in partition.waves for item in wave] == list(range(num_items))
    counts = runs_of(partition)
    assert counts == {(node, wave): 1 for node in costs.needed for wave in range(len(partition.waves))}
    assert all(0 <= piece.worker < num_workers for piece in partition.pieces)


@settings(max_examples=60)
@given(paths, st.integers(1, 30), st.integers(1, 5), cuts, cuts, st.sampled_from([1e6, 1e9, 1e15]), st.data())
def test_every_piece_has_its_input_from_one_that_exports_it(digits, num_items, num_workers, cut, share, pace, data):
    """At any price of handing over, with any outputs given, every candidate's last block runs on every item."""
    tree = tree_of(digits)
    interior = [node.index for node in tree.nodes if not node.candidates]
    given_nodes = data.draw(st.sets(st.sampled_from(interior), max_size=4))
    rates = Rates(handover_bytes_per_s=pace)
    costs, partition = dealt(tree, num_items, num_workers, cut, share, rates, given_nodes)
    counts = runs_of(partition)
    for end in set(tree.ends):
        assert all(counts[end, wave] >= 1 for wave in range(len(partition.waves)))
    for number, piece in enumerate(partition.pieces):
        inside = set(piece.nodes)
        assert {tree.nodes[node].parent for node in piece.nodes} - inside == {piece.source}
        makers = partition.takes_from(number)
        if piece.source in costs.item_s:
            assert set(makers) == set(piece.waves)
            assert all(piece.source in partition.pieces[maker].exports for maker in makers.values())
            assert all(maker < number for maker in makers.values())
        else:
            assert piece.source is None or piece.source in given_nodes


@settings(max_examples=40)
@given(paths, st.integers(1, 40), st.integers(1, 4), cuts, cuts, st.randoms())
def test_the_dispatcher_gives_tasks_once_after_their_input(digits, num_items, num_workers, cut, share, random):
    _, partition = dealt(tree_of(digits), num_items, num_workers, cut, share)
    dispatcher, done, running = Dispatcher(partition), set(), []
    while not dispatcher.is_done:
        for worker in range(num_workers):
            task = dispatcher.next_task(worker)
            if task:
                maker = partition.takes_from(task.piece).get(task.wave)
                assert maker is None or Task(maker, task.wave) in done
                assert task.wave < dispatcher.first_open + MAX_OPEN_WAVES
                running.append(task)
        task = running.pop(random.randrange(len(running)))
        assert task not in done
        done.add(task)
        dispatcher.finish(task)
    assert len(done) == sum(len(piece.waves) for piece in partition.pieces)


def test_a_prefix_runs_again_if_cheaper_than_its_handover():
    tree = star(12)
    dear, cheap = Rates(handover_bytes_per_s=1e3), Rates(handover_bytes_per_s=1e12)
    for rates, is_once in ((dear, False), (cheap, True)):
        _, partition = dealt(tree, 40, 4, 0.25, 0.25, rates)
        assert (max(runs_of(partition).values()) == 1) == is_once
        takes = {number: partition.takes_from(number).values() for number in range(len(partition.pieces))}
        elsewhere = [
            number
            for number, makers in takes.items()
            for maker in makers
            if partition.pieces[maker].worker != partition.pieces[number].worker
        ]
        assert bool(elsewhere) == is_once


def test_blocks_that_a_worker_holds_draw_its_pieces_to_it():
    tree = star(12)
    costs = Costs.of(tree, needed_nodes(tree, range(12)), Rates(read_bytes_per_s=1e-3))
    first = choose_partition(costs, 40, 4, 3, CHEAP_HANDOVER)
    held = held_after(tree, first)
    assert sum(map(len, held)) == len({block_key(tree.nodes[index]) for index in costs.needed}), "each is read once"
    again = choose_partition(costs, 80, 4, 3, CHEAP_HANDOVER, held)
    assert held_after(tree, again) == held


@pytest.mark.parametrize("num_workers", [1, 2, 16])
@pytest.mark.parametrize("distribution", ["twenty_five_percent", "fifty_percent", "last_one_layer"])
def test_the_makespan_is_within_a_tenth_of_its_bound(distribution, num_workers):
    tree = star(400, distribution)
    rungs = plan_rungs("shared", 400, 800, 200)
    (rung,) = simulate(tree, rungs, [range(400)], num_workers, Rates(read_bytes_per_s=1e10))
    assert 1 <= rung.makespan_s / rung.bound_s <= 1.1
    assert rung.computed_s == pytest.approx(rung.unique_s)


def test_one_candidate_is_shared_by_its_items():
    tree = star(1)
    costs = Costs.of(tree, needed_nodes(tree, [0]), Rates())
    partition = choose_partition(costs, 1000, 4, 2, Rates())
    assert play(partition, costs, Rates()) < 0.55 * costs.total_s(1000)


def test_workers_without_blocks_are_used_too():
    tree = star(40)
    rungs = plan_rungs("alsatian", 40, 800, 200)
    entrants = [range(40), *(range(rung.num_kept) for rung in rungs[:-1])]
    simulated = simulate(tree, rungs, entrants, 4, Rates())
    assert [rung.num_candidates for rung in simulated] == [40, *(rung.num_kept for rung in rungs[:-1])]
    assert all(rung.read_s <= simulated[0].read_s for rung in simulated[1:])
