"""The method as a drawing: the loop, what is fed back in it, and the decisions that a policy gradient follows."""

from paper.figures import GREY, STYLES, pyplot

BLUE, ORANGE = STYLES[0][0], STYLES[1][0]
FEEDBACKS = (  # title, equation, what it is, colour
    ("hidden state", "$z_{i+1}=h_i$", "or a norm or an\nMLP of it", BLUE),
    (
        "mixture",
        r"$z_{i+1}=E^T\,\mathrm{softmax}(Wh_i)$",
        "the mean embedding under\nthe next-token distribution",
        BLUE,
    ),
    (
        "sampled tokens, merged",
        r"$z_{i+1}=\frac{1}{K}\sum_j E[v_j]$",
        "$v_1$ ... $v_K$ drawn from that\ndistribution: a decision",
        ORANGE,
    ),
    ("control: pause", "$z_{i+1}=e_{i+1}$", "a learned token: nothing\nof the problem, one pass", GREY),
    ("control: fixed", "$z_{i+1}=c$", "one constant: nothing of\nthe problem, $k$ passes", GREY),
)
PLACES = ((0.8, 15.4), (17.4, 20.4), (39, 20.4), (60.6, 18.6), (80.4, 18.6))  # left edge and width of each box
INPUTS = {25: "$z_1$", 36: "$z_2$", 47: "$z_k$", 58: "$y_1$", 69: "$y_2$"}  # by their middle
STATES = {15: "$h_0$", 25: "$h_1$", 36: "$h_2$", 47: "$h_k$"}
DECIDED = (  # middle, height, text
    *((x, 45.1, "stop?") for x in (15, 25, 36, 45.6)),
    (50.3, 45.1, "$y_1$"),
    (58, 40.2, "$y_2$"),
    (69, 40.2, "$y_3$"),
)
RECORD = (  # height, text
    (41.3, "every decision $d$:\nits order, value,\n$\\log\\pi(d)$, entropy"),
    (32.8, "a verifier says $r$;\nadvantage $A$ within\nthe rollouts of\na question"),
    (25.5, "$\\nabla\\,\\sum_d A\\,\\log\\pi(d)$"),
)


def figure():
    """The loop above, and below it what can be fed back in it."""
    fig, ax = pyplot().subplots(figsize=(7.4, 3.95))
    fig.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, 100), ylim=(0, 52))
    ax.axis("off")
    loop(ax)
    recorded(ax)
    write(ax, 10.5, 18.5, "What is fed back (f):", size=8, weight="bold")
    for (title, equation, what, colour), (left, wide) in zip(FEEDBACKS, PLACES):
        box(ax, left, 1, wide, 15.5, colour)
        write(ax, left + wide / 2, 14.2, title, color=colour, weight="bold")
        write(ax, left + wide / 2, 10, equation, size=8)
        write(ax, left + wide / 2, 4.6, what, size=6.5)
    return fig


def loop(ax) -> None:
    """Question, latents and text as inputs of a transformer, its states above them, and what goes back down."""
    box(ax, 3, 30, 78, 5.5, "black", "causal transformer", "#eeeeee", at=11.5)
    box(ax, 4, 22.5, 14, 4.5, "black", "question")
    arrow(ax, (11, 27.2), (11, 29.8))
    for x, name in INPUTS.items():
        box(ax, x - 2.5, 22.5, 5, 4.5, BLUE if "z" in name else "black", name)
        arrow(ax, (x, 27.2), (x, 29.8))
    for x in (*STATES, 58, 69):
        arrow(ax, (x, 35.7), (x, 37.8))
    for x, name in STATES.items():
        box(ax, x - 2.5, 38, 5, 4.5, BLUE, name)
    for y in (24.7, 40.2):
        write(ax, 41.5, y, "...")
    for start, middle, end, colour in (
        ((17.7, 40.2), 20.6, 22.4, BLUE),
        ((27.7, 40.2), 31.1, 33.4, BLUE),
        ((51.7, 45.1), 53.2, 55.4, "black"),
        ((59.4, 40.2), 63.5, 66.4, "black"),
    ):
        ax.plot([start[0], middle, middle], [start[1], start[1], 24.7], color=colour, lw=1)
        arrow(ax, (middle, 24.7), (end, 24.7), colour)
        if colour == BLUE:
            write(ax, middle + 1.1, 37, "f", color=BLUE, style="italic", size=9)


def recorded(ax) -> None:
    """The decisions of the loop, and what becomes of them."""
    ax.plot([15, 81.6], [50, 50], color=ORANGE, lw=0.8, ls=":")
    arrow(ax, (81.6, 50), (83.8, 48), ORANGE)
    for x, y, text in DECIDED:
        ax.plot([x, x], [y + 1.4, 50], color=ORANGE, lw=0.8, ls=":")
        shape = {"boxstyle": "round,pad=0.25,rounding_size=0.8", "ec": ORANGE, "fc": "#fff3ea", "lw": 0.9}
        write(ax, x, y, text, bbox=shape)
    box(ax, 84, 22.5, 15.4, 27.5, ORANGE)
    write(ax, 91.7, 48, "recorded", color=ORANGE, weight="bold", size=8)
    for y, text in RECORD:
        write(ax, 91.7, y, text)


def box(ax, x: float, y: float, wide: float, high: float, colour: str, text="", fill="white", at=None) -> None:
    """A rounded box with a text in its middle, or `at` another place along it."""
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0,rounding_size=0.8", ec=colour, fc=fill, lw=1)
    ax.add_patch(shape)
    write(ax, at or x + wide / 2, y + high / 2, text, size=8)


def arrow(ax, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    """A straight arrow."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1, "shrinkA": 0, "shrinkB": 0})


def write(ax, x: float, y: float, text: str, size: float = 7, **how) -> None:
    """A text around a point."""
    ax.text(x, y, text, ha="center", va="center", size=size, **how)
