"""The method as a drawing: the loop, what is fed back in it, and the decisions that a policy gradient follows."""

from paper.figures import GREY, STYLES, pyplot

BLUE, ORANGE, GREEN = (STYLES[i][0] for i in range(3))
FEEDBACKS = (  # title, equation, what it is, colour
    ("hidden state", r"$z_{i+1}=h_i$", "or a norm or an\nMLP of it", BLUE),
    ("mixture", r"$z_{i+1}=E^T\,\mathrm{softmax}(Wh_i)$", "the mean embedding under\nthe next-token distribution", BLUE),
    ("sampled tokens, merged", r"$z_{i+1}=\frac{1}{K}\sum_j E[v_j]$", "$v_1 \\ldots v_K$ drawn from that\ndistribution: a decision", ORANGE),
    ("control: pause", r"$z_{i+1}=e_{i+1}$", "a learned token: nothing\nof the problem, one pass", GREY),
    ("control: fixed", r"$z_{i+1}=c$", "one constant: nothing of\nthe problem, $k$ passes", GREY),
)  # fmt: skip


def figure():
    """The loop above, what can be fed back in it below."""
    fig, ax = pyplot().subplots(figsize=(7.4, 4.0))
    fig.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, 100), ylim=(0, 54))
    ax.axis("off")
    loop(ax)
    for n, (title, equation, what, colour) in enumerate(FEEDBACKS):
        left, wide = (0.8, 17.4, 39, 60.6, 80.4)[n], (15.4, 20.4, 20.4, 18.6, 18.6)[n]
        box(ax, left, 1, wide, 15.5, "", colour, fill="white")
        ax.text(left + wide / 2, 14.2, title, ha="center", va="center", weight="bold", color=colour, size=7)
        ax.text(left + wide / 2, 10, equation, ha="center", va="center", size=8)
        ax.text(left + wide / 2, 4.6, what, ha="center", va="center", size=6.5)
    ax.text(0.8, 18.3, "What is fed back (f):", ha="left", va="center", size=8, weight="bold")
    return fig


def loop(ax) -> None:
    """Question, latents and answer as inputs of a transformer, the states above them, and what is decided where."""
    box(ax, 3, 30, 78, 5.5, "", "black", fill="#eeeeee")
    ax.text(60, 32.75, "causal transformer: a position attends to all before it", ha="center", va="center", size=7.5)
    inputs = {8: "question", 25: "$z_1$", 36: "$z_2$", 47: "$z_k$", 58: "$y_1$", 69: "$y_2$"}
    outputs = {15: "$h_0$", 25: "$h_1$", 36: "$h_2$", 47: "$h_k$", 58: "", 69: ""}
    for x, name in inputs.items():
        wide, at = (14, 4) if name == "question" else (5, x - 2.5)
        colour = "black" if name == "question" or "y" in name else BLUE
        box(ax, at, 22.5, wide, 4.5, name, colour, fill="white")
        arrow(ax, (at + wide / 2, 27.2), (at + wide / 2, 29.8))
    for x, name in outputs.items():
        arrow(ax, (x, 35.7), (x, 37.8))
        if name:
            box(ax, x - 2.5, 38, 5, 4.5, name, BLUE, fill="white")
    ax.text(41.5, 24.7, "...", ha="center", va="center")
    ax.text(41.5, 40.2, "...", ha="center", va="center")
    for x, after in ((15, 25), (25, 36)):
        middle = (x + after) / 2 + 0.6
        down(ax, (x + 2.7, 40.2), middle, after - 2.6, BLUE)
        ax.text(middle + 0.7, 37, "f", color=BLUE, style="italic", ha="left", va="center", size=9)
    decided = [(15, "stop?", 45.1), (25, "stop?", 45.1), (36, "stop?", 45.1), (45.6, "stop?", 45.1)]
    decided += [(50.3, "$y_1$", 45.1), (58, "$y_2$", 40.2), (69, "$y_3$", 40.2)]
    for x, text, y in decided:
        decision(ax, x, text, y)
        ax.plot([x, x], [y + 1.4, 50], color=ORANGE, lw=0.8, ls=":")
    down(ax, (51.7, 45.1), 53, 55.4, "black")
    down(ax, (59.4, 40.2), 63.5, 66.4, "black")
    ax.plot([15, 81.6], [50, 50], color=ORANGE, lw=0.8, ls=":")
    arrow(ax, (81.6, 50), (83.8, 48), ORANGE)
    box(ax, 84, 22.5, 15.4, 27.5, "", ORANGE, fill="white")
    ax.text(91.7, 48, "recorded", color=ORANGE, weight="bold", ha="center", va="center", size=8)
    ax.text(
        91.7, 41.3, "every decision $d$:\nits order, value,\n$\\log\\pi(d)$, entropy", ha="center", va="center", size=7
    )
    ax.text(91.7, 32.8, "a verifier says $r$;\nadvantage $A$ within\nthe rollouts of\na question", ha="center", va="center", size=7)  # fmt: skip
    ax.text(91.7, 25.5, r"$\nabla\,\sum_d A\,\log\pi(d)$", ha="center", va="center", size=8)


def down(ax, start: tuple[float, float], middle: float, end: float, colour: str) -> None:
    """A line from a state or a token, down between two columns to the next input."""
    ax.plot([start[0], middle, middle], [start[1], start[1], 24.7], color=colour, lw=1)
    arrow(ax, (middle, 24.7), (end, 24.7), colour)


def box(ax, x: float, y: float, wide: float, high: float, text: str, colour: str, fill: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0,rounding_size=0.8", ec=colour, fc=fill, lw=1)
    ax.add_patch(shape)
    ax.text(x + wide / 2, y + high / 2, text, ha="center", va="center", size=8, color="black")


def arrow(ax, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1, "shrinkA": 0, "shrinkB": 0})


def decision(ax, x: float, text: str, y: float) -> None:
    """A choice that is drawn and recorded."""
    ax.text(x, y, text, ha="center", va="center", size=7,
            bbox={"boxstyle": "round,pad=0.25,rounding_size=0.8", "ec": ORANGE, "fc": "#fff3ea", "lw": 0.9})  # fmt: skip
