"""What stands before a chunk while its donor-mean block is made: passages of plain prose about nothing in particular.

Every donor is all passages, each time beginning with another one: blocks made behind one passage alone stray twice as
far (mean KL .107 against .059 on 6 prompts of 1,000 tokens). They are fixed, so that a block depends on its chunk alone
and no document lives on in the blocks of others.
"""

from __future__ import annotations

__all__ = ["DONORS"]

_PASSAGES = (
    "\n<document>\n[1] Source: garden.txt\nThe allotments behind the railway station were laid out in spring. "
    "Each plot is ten metres long and six wide, with a shed at the northern end and a water tap shared by four "
    "neighbours. Beans, onions and late potatoes grow well in the sandy soil; tomatoes need shelter from the "
    "wind. The committee meets on the first Monday of the month, collects the dues, and lends out tools. Compost "
    "is turned twice a year. Whoever leaves a plot untended for a season is written to, and after a second "
    "letter the plot goes to the next person on the list.\n</document>\n",
    "\n<document>\n[1] Source: bridge.txt\nA suspension bridge carries its deck on cables that hang between two "
    "towers. The cables are anchored in rock or in blocks of concrete at both ends, and vertical hangers pass "
    "the weight of traffic up to them. Steel wires are spun on the site, compressed into a round bundle and "
    "wrapped against rain. Inspectors look for broken wires by listening with microphones. Joints let the deck "
    "grow in summer and shrink in winter. Wind is the main concern for long spans, so the deck is shaped like a "
    "flat wing and tested in a tunnel.\n</document>\n",
    "\n<document>\n[1] Source: accounts.txt\nInvoices are entered on the day they arrive and checked against the "
    "order and the delivery note. If the three agree, the amount is released for payment within thirty days. "
    "Differences of less than two per cent are booked without a question; larger ones go back to the buyer. "
    "Travel costs are claimed with receipts at the end of the month. The ledger is closed on the fifth working "
    "day, after which corrections need a new entry. Records are kept for ten years in a dry room, and for longer "
    "where a contract says so.\n</document>\n",
    "\n<document>\n[1] Source: bees.txt\nIn early summer a strong colony raises new queens and the old one "
    "leaves with half of the workers. The swarm hangs on a branch for a day or two while scouts look for a "
    "hollow tree or an empty box. They report what they found by dancing, and slowly agree on one place. A "
    "keeper can shake the cluster into a hive at dusk. Honey is taken once the cells are capped, never all of "
    "it, and sugar syrup is fed before the first frost. Mites are counted on a white board under the frames.\n"
    "</document>\n",
)

DONORS = tuple("".join(_PASSAGES[at:] + _PASSAGES[:at]) for at in range(len(_PASSAGES)))
