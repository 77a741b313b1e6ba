"""What the Penn Treebank tokenizer knows by heart: abbreviations, file endings, and the kind of each character outside ASCII."""

import unicodedata

# Keep their full stop, whatever follows. Capitalised here: the first letter must be a capital ("Ill." is a state, "ill." a patient).
PLACES_AND_FIRMS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ala ariz Az Ark calif colo conn ct dak Del fla ga Ill ind kan kans ky La Mass md mich minn Miss mo mont neb nev okla Ore Pa penn tenn
    Tex va vt Wash wis wisc wyo inc co cos corp ltd plc rt bancorp bhd assn univ intl sys tel est ext sq jr sr bros blvd rd esq etc al seq
    bldg
"""
TITLES = """
    mr mrs ms Miss dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt st ste ave pres
    lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr sfc vs alex wm jos cie cf treas ph
    invt elec natl dept
"""
BEFORE_A_NUMBER = "ca fig figs prop no nos art bldg pp op"  # "No. 5", but "no" and a full stop elsewhere
OPENERS = """
    About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She Since
    So Some Such That The Their Then There These They This We When While What Yet You
"""  # after a single letter and a full stop they begin a sentence: "vitamin C. The"
FILE_ENDINGS = """
    bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql tar txt wav x xml zip
"""


def spelled(words: str) -> str:
    """A pattern for any of these words: a capital must be one, small letters may be either."""
    return "|".join(word[0] + f"(?i:{word[1:]})" if word[0].isupper() else f"(?i:{word})" for word in words.split())


# One sign stands for all characters of a kind, so that the rules stay small. A kind in ASCII, or alone, stands for itself.
LETTER, MARK, DIGIT, SYMBOL, SPACE, OTHER = "é", "\u0301", "\u0663", "§", "\u2000", "\ue000"
RAISED, LOWERED, RAISED_SIGN = "²", "₂", "⁺"
APOSTROPHE, OPENING, QUOTE, DASH, HYPHEN, POINT, SLASH, COMMA, ELLIPSIS = "’", "‘", "“", "–", "\u2010", "\u066b", "⁄", "、", "…"
NEXT_LINE, NO_BREAK_SPACE, SOFT_HYPHEN = "\x85", "\xa0", "\xad"

# Code points in hexadecimal, as the Java tokenizer's Unicode of 2012 has them; later rows win.
RANGES = {
    SYMBOL: """
        80 a1-a9 ac ae-b1 b4 b6-b8 bc-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 61b 61e-61f 66a 66d 6d4 700-70d
        7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 2020-2023 2030-2038 203b 203e-2042 20a0 20a4 20ac 2100-2101
        2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2153-215e 2190-2bff 3002
        3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6 207c-207e 208c-208e
    """,
    MARK: """
        2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e
        670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8
        9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31
        e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd
    """,  # parts of words, but not by themselves of compounds
    LETTER: "1885-1886",
    OTHER: """
        37f 528-52f 560 588 5ef 860-86a 870-88f 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5c-c5d c80 cdc-cdd d04 d54-d56 d5f de6-def e86 e89 e8c
        e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1cbf
        1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7
        a8fd-a8fe a9e0-a9fe aa7e-aa7f ab30-abbf
    """,  # letters and digits that came later: unknown
    RAISED: "b2-b3 b9 2070 2074-2079",
    LOWERED: "2080-2089",
    RAISED_SIGN: "207a-207b 208a-208b",
    APOSTROPHE: "92 2019",
    OPENING: "91 2018 201b",
    QUOTE: "93-94 201a 201c-201f 2039-203a ab bb",
    DASH: "96-97 2013-2015",
    HYPHEN: "58a 2010-2011",
    POINT: "66b-66c",
    SPACE: "2000-200a 3000",
    **{sign: f"{ord(sign):x}" for sign in (SLASH, COMMA, ELLIPSIS, NEXT_LINE, NO_BREAK_SPACE, SOFT_HYPHEN)},
}


class Kinds(dict[int, str]):
    """Code point -> the sign of its kind, for `str.translate`: as many signs as characters, so places stay."""

    def __init__(self):
        super().__init__((code, chr(code)) for code in range(128))
        for sign, ranges in RANGES.items():
            for span in ranges.split():
                first, _, last = span.partition("-")
                self.update(dict.fromkeys(range(int(first, 16), int(last or first, 16) + 1), sign))

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code)) if code < 0x10000 else ""  # beyond the first plane all is unknown to it
        self[code] = LETTER if category.startswith("L") else DIGIT if category == "Nd" else OTHER
        return self[code]
