"""Units that answers come with: which words are units, and which of them are one."""

_SPELLINGS = {
    "mm": "millimeter millimeters millimetre millimetres", "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres", "km": "kilometer kilometers kilometre kilometres",
    "inch": "in inches", "foot": "feet ft", "yard": "yards yd", "mile": "miles mi",
    "second": "seconds sec secs s", "minute": "minutes min mins", "hour": "hours hr hrs h", "day": "days",
    "week": "weeks", "month": "months", "year": "years yr yrs", "dollar": "dollars usd", "cent": "cents",
    "euro": "euros eur", "degree": "degrees deg", "radian": "radians rad", "mg": "milligram milligrams",
    "gram": "grams g", "kg": "kilogram kilograms kilos", "pound": "pounds lb lbs", "ounce": "ounces oz",
    "ton": "tons", "liter": "liters litre litres l", "ml": "milliliter milliliters", "gallon": "gallons gal",
    "cup": "cups", "pint": "pints", "quart": "quarts", "mph": "", "unit": "units", "point": "points",
    "percent": "percents", "way": "ways", "acre": "acres",
}  # fmt: skip
UNITS = {spelling: name for name, others in _SPELLINGS.items() for spelling in (name, *others.split())}
"""Spelling -> name."""
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
POWERS_AFTER = {"squared": 2, "cubed": 3}
NO_UNITS = {"am", "pm", "and", "or", "mod", "if", "is", "to", "not", "base", "dozen"} | {
    "hundred", "thousand", "million", "billion", "trillion",
}  # fmt: skip
"""Words after a number that change what it says."""
PARTS = {
    "half", "halves", "third", "thirds", "fourths", "fifth", "fifths", "sixth", "sixths", "eighth", "eighths", "tenth",
    "tenths", "hundredth", "hundredths",
}  # fmt: skip
"""Words that do so where they come last: two thirds, but three third graders."""


def changes_number(said: list[str]) -> bool:
    """Whether the words after a number say another number with it."""
    alone = len(said) == 1 or said[-2] not in UNITS
    return bool(NO_UNITS & set(said)) or said[-1] in PARTS or (said[-1] in POWERS_AFTER and alone)


def unit_of(words: str, power: int = 1) -> tuple[str, int] | None:
    """Name and power of a unit such as "cm", "square inches", "cm" with power 2, "cm per s"; None of what is not in
    UNITS."""
    said = words.lower().replace(".", "").split()
    if said == ["mph"]:
        said = ["mile", "per", "hour"]
    if len(said) == 2 and said[1] in POWERS_AFTER:
        power, said = POWERS_AFTER[said[1]], said[:1]
    if len(said) == 3 and said[1] == "per" and said[0] in UNITS and said[2] in UNITS:
        return f"{UNITS[said[0]]} per {UNITS[said[2]]}", power
    if len(said) == 2 and said[0] in POWERS:
        power, said = POWERS[said[0]], said[1:]
    return (UNITS[said[0]], power) if len(said) == 1 and said[0] in UNITS else None
