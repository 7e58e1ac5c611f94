import json
import math
import os
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.lr_scheduler import (
    DECAYS,
    OPEN_END,
    get_scheduler,
    make_schedule,
    parse_piecewise,
)
from hyperbrush.ldm.piecewise import check_piecewise, piecewise_oddities

REFERENCE = Path(os.environ.get("HYPERBRUSH_REFERENCE", "/work/shared/reference")) / "text.json"
CONSTANT = {"constant", "constant_with_warmup"}
DECAYING = sorted(set(DECAYS) - CONSTANT)

# (schedule, max_steps, start, [(rate, number of steps)]) as the webui reads them until it stops
WEBUI = [
    ("5e-5:100, 5e-6:1000, 1e-7", 150, 0, [(5e-5, 100), (5e-6, 50)]),
    ("5e-5:100, 5e-6:1000, 1e-7", 150, 60, [(5e-5, 40), (5e-6, 50)]),
    ("1e-4", 150, 0, [(1e-4, 150)]),
    ("0.001:10,0.0001:20, 1e-5:-1", 150, 0, [(1e-3, 10), (1e-4, 10), (1e-5, 130)]),
    ("5e-5:100", 150, 60, [(5e-5, 40)]),
    ("1e-3:50, 1e-4:40, 1e-5", 150, 0, [(1e-3, 50), (1e-4, 1), (1e-5, 99)]),
    ("2e-4:5, 1e-4:500", 150, 0, [(2e-4, 5), (1e-4, 145)]),
    ("5e-7:32, 5e-7:122, 2e-6:124, 1e-6", 150, 60, [(5e-7, 62), (2e-6, 2), (1e-6, 26)]),
    ("1e-4:10:20", 150, 0, [(1e-4, 150)]),
]


def optimizer(*rates, **kw):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": r} for r in rates], **kw)


def walk(schedule, steps):
    return [schedule(step) for step in range(steps)]


def train(opt, scheduler, steps, calls=1):
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        for _ in range(calls):
            scheduler.step()
    return rates


def test_issue_call_defaults_to_cosine():
    opt = optimizer(0.1)
    scheduler = get_scheduler(opt, num_warmup_steps=1000, num_training_steps=100000)
    assert opt.param_groups[0]["lr"] == 0
    scheduler.step(500)
    assert opt.param_groups[0]["lr"] == 0.05
    scheduler.step(1000)
    assert opt.param_groups[0]["lr"] == 0.1
    scheduler.step(1000 + 99000 // 3)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.075)
    scheduler.step(100000)
    assert opt.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_exact_at_the_edges(name, warmup, final):
    base, end = 3e-4, 23
    schedule = make_schedule(
        name, base_rate=base, num_warmup_steps=warmup, num_training_steps=end, final_factor=final
    )
    assert [schedule(n) for n in range(warmup)] == pytest.approx(
        [base * n / (warmup or 1) for n in range(warmup)]
    )
    assert schedule(warmup) == base
    last = base if name in CONSTANT else base * final
    assert [schedule(n) for n in (end, end + 1, 10 * end)] == [last] * 3
    assert all(schedule(n) > last for n in range(warmup, end)) or name in CONSTANT


def test_shapes():
    assert walk(make_schedule("linear", num_training_steps=4), 6) == [1, 0.75, 0.5, 0.25, 0, 0]
    assert walk(make_schedule("cosine", num_training_steps=4), 5) == pytest.approx(
        [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(5)]
    )
    assert walk(make_schedule("polynomial", num_training_steps=4, power=2), 5) == [
        1,
        9 / 16,
        1 / 4,
        1 / 16,
        0,
    ]
    assert walk(make_schedule("constant", num_warmup_steps=2), 4) == [0, 0.5, 1, 1]


def test_restarts_are_exact_where_thirds_are_not():
    schedule = make_schedule(
        "cosine_with_restarts", num_warmup_steps=2, num_training_steps=2 + 21, num_cycles=3
    )
    assert [n for n in range(30) if schedule(n) == 1] == [2, 9, 16]
    assert schedule(8) == pytest.approx((1 + math.cos(math.pi * 6 / 7)) / 2)
    assert schedule(22) > 0
    assert schedule(23) == schedule(99) == 0


def test_function_is_a_factor_of_the_base_rate_and_warms_up():
    schedule = make_schedule(lambda step: 2.0 / (step + 1), base_rate=0.5, num_warmup_steps=2)
    assert walk(schedule, 4) == [0, 0.25, pytest.approx(1 / 3), 0.25]
    with pytest.raises(UserError, match="returned nan at step 3"):
        make_schedule(lambda step: math.nan)(3)


@pytest.mark.parametrize(("text", "max_steps", "start", "expected"), WEBUI)
def test_piecewise_as_the_webui(text, max_steps, start, expected):
    segments = parse_piecewise(text, max_steps)
    rates = walk(make_schedule(text, num_training_steps=max_steps, base_rate=7), segments[-1][1])[start:]
    assert [(rate, len(list(same))) for rate, same in groupby(rates)] == expected


@pytest.mark.skipif(not REFERENCE.exists(), reason="no reference files")
def test_every_reading_of_the_webui():
    cases = json.loads(REFERENCE.read_text(encoding="utf-8"))["learning_rate"]
    assert cases
    for case in cases:
        text, steps, start = case["schedule"], case["max_steps"], case["start"]
        if case.get("error"):
            with pytest.raises(UserError):
                make_schedule(text, num_training_steps=steps)
            with pytest.raises(UserError):
                parse_piecewise(text, steps)
        else:
            end = parse_piecewise(text, steps)[-1][1]
            assert walk(make_schedule(text, num_training_steps=steps), end)[start:] == case["rates"], text


def test_piecewise_ends():
    assert parse_piecewise("1e-3:10, 1e-4") == [(1e-3, 10), (1e-4, OPEN_END)]
    assert parse_piecewise("1e-3:10, 1e-4:20", 15) == [(1e-3, 10), (1e-4, 15)]
    assert parse_piecewise("1e-3:0, 1e-4:20,", 15) == [(1e-4, 15)]
    assert make_schedule("1e-3:10, 1e-4:20")(10**6) == 1e-4
    warm = make_schedule("1e-3:4, 1e-4", num_warmup_steps=2)
    assert walk(warm, 5) == [0, 5e-4, 1e-3, 1e-3, 1e-4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rate"),
        (" , ", "holds no rate"),
        ("1e-3:0", "holds no rate"),
        ("1e-4:x", r"part '1e-4:x' of learning-rate schedule '1e-4:x': 'x' is not a step"),
        ("1e-4:10, abc:20, 1", r"part 'abc:20' .*'abc' is not a number"),
        ("1e-4, 1e-5:1.5", r"'1.5' is not a step"),
        ("nan:10", "finite"),
        ("inf", "finite"),
        ("-1e-4:10", "not negative"),
        ("1e-4:-2", "positive, or -1"),
        (":10", "'' is not a number"),
    ],
)
def test_malformed_piecewise(text, message):
    with pytest.raises(UserError, match=message):
        parse_piecewise(text, 100)


FULL_WIDTH = {
    "５ｅ－５：１００，５ｅ－６：２００": "5e-5:100,5e-6:200",
    "5e-5：100、5e-6：200": "5e-5:100,5e-6:200",
    "５．５e−5∶100،1e–7": "5.5e-5:100,1e-7",
    " 5e-5 :\t100 ,\u30005e-6: 200,, ": "5e-5:100,5e-6:200",
    "+5e-5:+100": "5e-5:100",
    "5E-5:100": "5e-5:100",
}


@pytest.mark.parametrize("text", FULL_WIDTH)
def test_signs_of_other_keyboards_are_understood(text):
    plain = FULL_WIDTH[text]
    assert parse_piecewise(text, 500) == parse_piecewise(plain, 500)
    assert walk(make_schedule(text, num_training_steps=500), 300) == walk(
        make_schedule(plain, num_training_steps=500), 300
    )
    check_piecewise(text)


@pytest.mark.parametrize(
    ("text", "message", "meant"),
    [
        ("5e-5:100;5e-6:200", "holds a ';'", "5e-5:100, 5e-6:200"),
        ("5e-5:100；5e-6:200", "holds a ';'", "5e-5:100, 5e-6:200"),
        ("5e-5:100, 5e-6:200; 1e-7", "holds a ';'", "5e-5:100, 5e-6:200, 1e-7"),
        ("0,00005:100; 0,000005:200", "holds a ';'", "0.00005:100, 0.000005:200"),
        ("5e-5:100 5e-6:200", "two parts without a comma", "5e-5:100, 5e-6:200"),
        ("5e-5:100\n5e-6", "is not a step", "5e-5:100, 5e-6"),
        ("5,5e-5:100", "part '5' .* so '5e-5:100' would never be reached", "5.5e-5:100"),
        ("0,00005:100", "part '0' .* no step to end at, so '00005:100' would never", "0.00005:100"),
        ("0,00005:100,0,000005:200", "would never be reached", "0.00005:100, 0.000005:200"),
        ("0,00005", "would never be reached", "0.00005"),
        ("1e-4, 1e-5:100", "part '1e-4' .* so '1e-5:100' would never be reached", None),
        ("1e-4:-1, 1e-5:100", "part '1e-4:-1' .* would never be reached", None),
        ("5e-5 100, 1e-6", "part '5e-5 100' .* not a number", None),
        ("5e-5=100", "'5e-5=100' is not a number", None),
        ("5e-5:1e3", "'1e3' is not a step", None),
        ("5e-5:-3", "positive, or -1", None),
    ],
)
def test_near_schedules_are_refused_with_what_was_meant(text, message, meant):
    refusals = []
    for read in (parse_piecewise, make_schedule, check_piecewise):
        with pytest.raises(UserError, match=message) as caught:
            read(text)
        refusals.append(str(caught.value))
    assert all(("did you mean" in said) == (meant is not None) for said in refusals)
    assert meant is None or all(said.endswith(f"did you mean {meant!r}?") for said in refusals)
    if meant is not None:
        check_piecewise(meant)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5e-5:200, 5e-6:100", "part '5e-6:100' ends before it begins, at step 200"),
        ("5e-5:100, 5e-6:100", "part '5e-6:100' ends before it begins, at step 100"),
        ("1e-4:10:20", "part '1e-4:10:20' holds two ':'"),
        ("1e-3:0, 1e-4:20", "part '1e-3:0' ends at step 0"),
    ],
)
def test_what_the_webui_takes_but_nobody_means_is_told_and_no_setting(text, said, caplog):
    assert [said in odd for odd in piecewise_oddities(text)] == [True]
    make_schedule(text, num_training_steps=300)
    assert said in caplog.text
    with pytest.raises(UserError, match=said):
        check_piecewise(text)


def test_a_sound_schedule_is_told_nothing_about(caplog):
    make_schedule("5e-5:100, 0:150, 5e-6:1000, 1e-7", num_training_steps=300)
    assert not caplog.text
    check_piecewise("0:100, 5e-6")
    for nothing in ("0", "0:10, 0.0"):
        with pytest.raises(UserError, match="nothing would be learnt"):
            check_piecewise(nothing)


def test_refusals():
    with pytest.raises(UserError, match="schedule 'cosin'; did you mean 'cosine'"):
        make_schedule("cosin", num_training_steps=3)
    for name in DECAYING:
        with pytest.raises(UserError, match="needs num_training_steps"):
            make_schedule(name)
        with pytest.raises(UserError, match="no step left to decay"):
            make_schedule(name, num_warmup_steps=5, num_training_steps=5)
    with pytest.raises(UserError, match="num_cycles=0"):
        make_schedule("cosine_with_restarts", num_training_steps=5, num_cycles=0)
    with pytest.raises(UserError, match="must not be negative"):
        make_schedule("constant", num_warmup_steps=-1)
    with pytest.raises(UserError, match="no step -1"):
        make_schedule("constant")(-1)
    with pytest.raises(UserError, match="optimizer first"):
        get_scheduler("cosine", optimizer(0.1), num_training_steps=3)


def test_groups_keep_their_proportion():
    opt = optimizer(0.1, 0.02)
    train(opt, get_scheduler(opt, "linear", num_training_steps=4), 2)
    assert [g["lr"] for g in opt.param_groups] == [0.05, 0.01]
    opt = optimizer(0.1, 0.02)
    train(opt, get_scheduler(opt, "1e-3:2, 1e-4", num_training_steps=4), 2)
    assert [g["lr"] for g in opt.param_groups] == pytest.approx([1e-4, 2e-5])
    with pytest.raises(UserError, match="whose lr is 0"):
        get_scheduler(optimizer(0.0, 0.1), "1e-3")


@pytest.mark.parametrize("name", ["cosine", "1e-3:5, 1e-4:9, 1e-5", lambda step: 1 / (1 + step)])
@pytest.mark.parametrize("calls", [1, 2, 8])
def test_calls_between_optimizer_steps_change_nothing(name, calls):
    options = {"num_warmup_steps": 3, "num_training_steps": 20}
    opt = optimizer(0.1)
    rates = train(opt, get_scheduler(opt, name, **options), 25, calls=calls)
    base = 0.1 if name == "cosine" or callable(name) else 1.0
    assert rates == walk(make_schedule(name, base_rate=base, **options), 25)


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("processes", [1, 4])
def test_right_under_accelerate(prepared, processes, monkeypatch):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Linear(1, 1)
    weight, opt = accelerator.prepare(weight, torch.optim.SGD(weight.parameters(), lr=0.1))
    scheduler = get_scheduler(opt, num_warmup_steps=2, num_training_steps=10)
    if prepared:
        scheduler = accelerator.prepare(scheduler)
        state = SimpleNamespace(num_processes=processes)
        monkeypatch.setattr("accelerate.scheduler.AcceleratorState", lambda: state)
    assert train(opt, scheduler, 12) == walk(
        make_schedule("cosine", base_rate=0.1, num_warmup_steps=2, num_training_steps=10), 12
    )


def test_without_optimizer_steps_it_walks_and_winds_forward():
    opt = optimizer(0.1)
    scheduler = get_scheduler(opt, "linear", num_training_steps=10)
    for n in range(5):
        assert opt.param_groups[0]["lr"] == pytest.approx(0.1 * (10 - n) / 10)
        scheduler.step()
    opt.step()
    scheduler.step()
    assert scheduler.last_epoch == 6


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("name", ["cosine", "1e-3:5, 1e-4"])
def test_resume(name, optimizer_first):
    options = {"num_warmup_steps": 2, "num_training_steps": 12}
    whole = train(opt := optimizer(0.1), get_scheduler(opt, name, **options), 12)
    opt = optimizer(0.1)
    scheduler = get_scheduler(opt, name, **options)
    first = train(opt, scheduler, 5)
    saved = json.loads(json.dumps(scheduler.state_dict())), opt.state_dict()
    opt = optimizer(0.1)
    scheduler = get_scheduler(opt, name, **options)
    if optimizer_first:
        opt.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[0])
    if not optimizer_first:
        opt.load_state_dict(saved[1])
    assert first + train(opt, scheduler, 7) == whole
    with pytest.raises(UserError, match="not a learning-rate scheduler's state"):
        scheduler.load_state_dict({"a": 1})


def test_tensor_rates_are_filled_in_place():
    weight = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.Adam([weight], lr=torch.tensor(0.5), foreach=False, capturable=False)
    held = opt.param_groups[0]["lr"]
    get_scheduler(opt, "linear", num_training_steps=4).step(2)
    assert opt.param_groups[0]["lr"] is held
    assert held.item() == 0.25
