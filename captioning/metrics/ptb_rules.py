"""The rules of the Penn Treebank tokenizer, in order, as Stanford CoreNLP 3.4.1 has them and COCO's metrics use them.

Of all rules which match at a place, the longest match wins, what must follow the token included; of equally long ones, the first.
The rules see a text in which one sign stands for each kind of character (`ptb_tables.Kinds`), so `é` below is any letter outside ASCII.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from captioning.metrics import ptb_tables as tables

WORDLY = r"A-Za-zé\u0301\xad"  # what a word is made of: letters, accents that follow them, soft hyphens
ENTITY = "&[aeiouAEIOU](?i:acute|grave|uml);"  # &eacute; is a letter too
LETTER = f"(?:[{WORDLY}]|{ENTITY})"
LETTER_OR_DIGIT = rf"(?:[{WORDLY}0-9\u0663]|{ENTITY})"
PLAIN = r"[A-Za-zé0-9\u0663]"  # of a compound
DIGIT = r"[0-9\u0663]"
HYPHEN = "[-_\u2010]"
APOSTROPHE = "(?:['’]|&(?i:apos);)"
ANY_APOSTROPHE = "(?:['’`‘]|&(?i:apos);)"
SPACE = r"[ \t\xa0\u2000]"
BLANK = r"[ \t\xa0\u2000\n\x85]"  # line ends, too
PAUSE = "[,;:、]"

WORD = rf"{LETTER}{LETTER_OR_DIGIT}*+(?:[.!?]{LETTER}{LETTER_OR_DIGIT}*+)*+"  # "stop.go" is one
NOT = f"[nN]{ANY_APOSTROPHE}[tT]"
CLITIC = f"{APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
ELIDED = f"(?:[dDoOlL]{ANY_APOSTROPHE}{PLAIN})?"  # o'clock, d'or, l'eau
COMPOUND = f"{ELIDED}{PLAIN}++(?:{HYPHEN}{ELIDED}{PLAIN}++)*+"
HYPHENATED = r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"
FIRMS = "[A-Z]+(?:(?:&(?i:amp);|[+&])[A-Z]+)+"  # AT&T; "at&t" is three
NUMBER = rf"[-+]?(?:{DIGIT}++(?:[.:,\xad\u066b]{DIGIT}++)*+|(?:[.:,\xad\u066b]{DIGIT}++)++)"
NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"  # in a tag
TAG = rf"""<(?:[!?][A-Za-z\-][^>\r\n]*|{NAME}(?:[ ]+{NAME}(?:[ ]*=[ ]*(?:'[^']*'|"[^"]*"))?)*[ ]*+/?|/{NAME})[ ]*+>"""
HOST = r'(?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}'
NO_CAPITALS = r"""^ \t\n\f\r"`'<>|!?(){}$,-_"""  # the last three are a range, by a slip: no digits either
DOT_COM = rf"(?:[{NO_CAPITALS}]+\.)+(?i:com|net|org|edu)"
PATH = r'/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-]'
E_MAIL = r'[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\xa0]*@(?:[^ \t\n\f\r"<>|(){}.\xa0]+\.)*[^ \t\n\f\r"<>|(){}.\xa0]+'
ALLIANCE = r"(?:(?i:Canada|Sino|Korean|EU|Japan|non)-[uU]\.[sS]|[uU]\.[sS]\.-(?:[uU]\.[kK]|[uU]\.[sS]\.[sS]\.[rR]))"
FIRMS_AND_PLACES = rf"(?:{tables.spelled(tables.PLACES_AND_FIRMS)}|[pP][pP]?[tT][ye][sS]?|(?i:ed|ph)\.[dD])"
TITLES = rf"(?:{tables.spelled(tables.TITLES)}|[mM][ft][gG])"
ABBREVIATION = rf"(?:{FIRMS_AND_PLACES}|{TITLES}|[A-Za-z])\."
OPENER = rf"(?:{tables.spelled(tables.OPENERS)}|M(?i:[rs]\.)|{TAG})"


def without_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def in_one_piece(token: str) -> str:
    """What is printed between spaces may hold none: they become no-break spaces."""
    return token.replace(" ", "\xa0")


def quotes(token: str) -> str:
    """As LaTeX writes them."""
    token = re.sub("&apos;", "'", token).replace('"', "''")
    return token.translate(QUOTES)


def brackets(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def phone(token: str) -> str:
    return brackets(in_one_piece(token))


def ampersand(token: str) -> str:
    return re.sub("(?i:&amp;)", "&", token)


def currency_or_fraction(token: str) -> str:
    return WRITTEN_OUT.get(token, token)


QUOTES = str.maketrans(
    dict.fromkeys("\x91‘‛‹", "`") | dict.fromkeys("\x92’›", "'") | dict.fromkeys("\x93“«", "``") | dict.fromkeys("\x94”»", "''")
)
WRITTEN_OUT = {"¢": "cents", "£": "#", **dict.fromkeys("\x80¤₠€", "$"), "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


class Rule(NamedTuple):
    start: str  # characters that a match may begin with, as in [...]: saves time
    token: str
    before: str = ""  # what must follow
    written: Callable[[str], str] | str = str  # how the token is printed


ALPHA, ALNUM, DIGITS = rf"&{WORDLY}", rf"&{WORDLY}0-9\u0663", r"0-9\u0663"
APOS = "'’&"
RULES = [
    Rule("cC", r"[cC]\+\+"),
    Rule("cCfF", "[cCfF]#"),  # languages of programs, and of music
    # Two words written as one: the token ends where the second begins.
    Rule("cC", "(?i:can)", "(?i:not)"),
    Rule("'", "'[tT]", "(?i:was)"),
    Rule("'", "'[tT]", "(?i:is)"),
    Rule("gGlLwW", "(?i:gon)", "(?i:na)"),
    Rule("gG", "(?i:got)", "(?i:ta)"),
    Rule("lL", "(?i:lem)", "(?i:me)"),
    Rule("gG", "(?i:gim)", "(?i:me)"),
    Rule("wW", "(?i:wan)", "(?i:na)"),
    # Tags and entities.
    Rule("<", TAG, "", in_one_piece),
    Rule("&–", "&(?i:md|mdash|ndash);|–", "", "--"),  # dashes of all lengths are one
    Rule("&", "&(?i:amp);", "", ampersand),
    Rule("&", "&(?:(?i:HT|TL|UR|LR|QC|QL|QR|odq|cdq)|#[0-9]+);"),  # marks of old news wires stay as they are
    # Words; "dog" of "dog's" and "do" of "don't".
    Rule(ALPHA, WORD, CLITIC, without_soft_hyphens),
    Rule(r"A-Za-z\xad", r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", NOT, without_soft_hyphens),
    Rule(ALPHA, WORD, "", without_soft_hyphens),
    # Words that hold an apostrophe.
    Rule(APOS, f"{APOSTROPHE}[nN]{APOSTROPHE}?"),  # rock 'n' roll
    Rule("lLdDjJ", f"[lLdDjJ]{APOSTROPHE}"),  # French
    Rule("dDsSoO", f"(?i:dunkin|somethin|ol){APOSTROPHE}"),
    Rule(APOS, f"{APOSTROPHE}(?:(?i:em|till?|cause)|[2-9]0[sS])"),  # get 'em; the '50s
    Rule("A-HJ-XZn", f"[A-HJ-XZn]{ANY_APOSTROPHE}[A-Za-zé]{{2,}}"),  # no small letter but n: capitals matter
    Rule("A-Za-zé", f"[A-Za-zé]+[aeiouyAEIOUY]{ANY_APOSTROPHE}[aeiouA-Z][A-Za-zé]*"),  # Hawai'i
    Rule("cCnNeEsSlL", r"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"),
    Rule("oO", f"[oO]{ANY_APOSTROPHE}[oO]"),
    Rule("yY", f"[yY]{APOSTROPHE}", "[A-Za-zé]"),  # y'all
    # Addresses and names of the net.
    Rule("hH", r'(?i:https?)://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-]'),
    Rule("wW", HOST + PATH),
    Rule("wW", HOST),
    Rule(NO_CAPITALS, DOT_COM + PATH),
    Rule(NO_CAPITALS, DOT_COM),
    Rule("&<a-zA-Z0-9", f"(?:&(?i:lt);|<)?{E_MAIL}(?:&(?i:gt);|>)?"),
    Rule("@", "@[a-zA-Z_][a-zA-Z_0-9]*"),
    Rule("#", f"#{LETTER}+"),
    Rule(APOS, CLITIC, "[^A-Za-z]", quotes),  # 's, 'll
    Rule("nN", NOT, "[^A-Za-z]", quotes),  # n't
    # Numbers.
    Rule(DIGITS, f"{DIGIT}{{1,2}}[-/]{DIGIT}{{1,2}}[-/]{DIGIT}{{2,4}}"),  # dates
    Rule(rf"{DIGITS}+.:,\xad\u066b\-", NUMBER, "", without_soft_hyphens),
    Rule("²₂⁺", "⁺?(?:²+|₂+)"),  # exponents
    Rule(DIGITS, rf"(?:{DIGIT}{{1,4}}[- \xa0])?{DIGIT}{{1,4}}(?:\\?/|⁄){DIGIT}{{1,4}}", "", in_one_piece),
    Rule("-", "-(?i:RRB|LRB|RCB|LCB|RSB|LSB)-"),  # a text tokenized before
    Rule("cCpPaAsS", f"(?i:C\\.D\\.s|pro-|anti-|S(?:&amp;|&)(?:P-500|Ls)|cap{APOSTROPHE}n|c{APOSTROPHE}est)", "", ampersand),
    Rule("A-Za-z0-9", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    Rule("A-Z$#", r"[A-Z]*\$|#"),  # US$; capitals only
    # Abbreviations keep their full stop.
    Rule("A-Za-z", "[A-Za-z]", rf"\.{BLANK}+{OPENER}{BLANK}"),  # "vitamin C. The": the one that loses it
    Rule("a-zA-Z", rf"(?:{tables.spelled(tables.BEFORE_A_NUMBER)})\.", f"{BLANK}?{DIGIT}"),
    Rule("pPcC", r"(?:[pP][tT][eyEY]|[cC][oO])\.", f"{SPACE}(?i:ltd|lim)"),
    Rule("A-Za-z", rf"{FIRMS_AND_PLACES}\.", r"[\s\S][\s\S]"),  # two of any kind: so longer than a word of three letters
    Rule("A-Za-z", rf"{TITLES}\."),
    Rule("A-Za-z", r"[A-Za-z](?:\.[A-Za-z])*+\."),  # initials, U.S., p.m.
    Rule("A-Za-z", ALLIANCE, BLANK),
    Rule(APOS, f"{APOSTROPHE}[0-9][0-9]", BLANK),  # in '95
    Rule(ALNUM, rf"(?:{LETTER_OR_DIGIT}++\.)+(?i:{'|'.join(tables.FILE_ENDINGS.split())})", f"(?:{BLANK}|[.?!,])"),
    Rule(ALPHA, rf"{WORD}\.", PAUSE, without_soft_hyphens),  # "dog., cat": taken for an abbreviation
    Rule(
        r"0-9(+",
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        "",
        phone,
    ),
    Rule("0-9+", r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),
    # Marks.
    Rule('"&', '"|&(?i:quot);', "", "''"),
    Rule("<&", "<|&(?i:lt);", "", "<"),
    Rule(">&", ">|&(?i:gt);", "", ">"),
    Rule("<>:;=", r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", brackets),  # smileys, western and eastern
    Rule(r"\^x=~<>", r"[\^x=~<>]\.\[\^x=[^<]*<>\]", "", brackets),  # a slip in the original: meant as two classes
    Rule(r"\-\^x=~<>'", r"[-^x=~<>']_[-^x=~<>']"),
    Rule("(", r"\((?:[-^x=~<>'][_.]?[-^x=~<>']|[\^x=~<>']-[\^x=~<>'`])\)", "", brackets),
    Rule("{", "{", "", "-LCB-"),
    Rule("}", "}", "", "-RCB-"),
    Rule(r"\[", r"\[", "", "-LSB-"),
    Rule(r"\]", r"\]", "", "-RSB-"),
    Rule("(", r"\(", "", "-LRB-"),
    Rule(")", r"\)", "", "-RRB-"),
    Rule("-", "-+", "", lambda token: "--" if 3 <= len(token) <= 4 else token),
    Rule(".…\x85", r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85…]", "", "..."),
    Rule("@#_", "@+|#+|_+"),
    Rule(r"*\\", r"\*+|(?:\\\*){1,3}"),
    Rule(",;:、", PAUSE),
    Rule("?!", "[?!]+"),
    Rule("./=§", "[./=§]", "", currency_or_fraction),
    # Compounds.
    Rule("A-Za-z0-9", rf"{HYPHENATED}\.", PAUSE, without_soft_hyphens),
    Rule("A-Za-z0-9", HYPHENATED, "", without_soft_hyphens),
    Rule(r"A-Za-zé0-9\u0663", rf"{COMPOUND}\.", PAUSE),
    Rule(r"A-Za-zé0-9\u0663", COMPOUND),
    Rule("A-Z", rf"{FIRMS}\.", PAUSE, ampersand),
    Rule("A-Z", FIRMS, "", ampersand),
    # Quotes, and what is left.
    Rule("'", "'", r"[A-Za-z][^ \t\n\r\xa0]", "`"),  # before a word of two letters it opens
    Rule(APOS, CLITIC, "", quotes),
    Rule("'’&`‘“", f"[`’‘“]{{1,2}}|''|{APOSTROPHE}", "", quotes),
    Rule("<>", "<<|>>"),
    # Nothing is printed for these, nor for a character that no rule begins with.
    Rule(r" \t\xa0\u2000", f"{SPACE}+", "", ""),
    Rule("&", "(?i:&nbsp;)", "", ""),
    Rule(r"+%&~^|\\²⁺⁄", r"[+%&~^|\\²⁺⁄]"),
]


compiled = cache(re.compile)


@cache
def rules_at(sign: str) -> list[tuple[re.Pattern[str], Callable[[str], str] | str]]:
    """The rules, in order, whose matches may begin with this character."""
    return [(compiled(f"({rule.token}){rule.before}"), rule.written) for rule in RULES if re.match(f"[{rule.start}]", sign)]
