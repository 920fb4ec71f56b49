"""The loops over single symbols and bits, compiled.

Plain functions of arrays and integers, without state; their callers check and allocate. ``at``
and ``end`` count bits from the most significant one of byte 0. Readers get bits.PAD behind
``end``, and look at no symbol that would begin behind it.

Positions are int64, what is shifted is uint64; numba makes a float of a sum of both.
"""

import math

import numpy as np

from . import BLOCK, LANES, LONGEST
from .compiled import helper, kernel

MAX_PROBES = 16  # of a hash table, for each value on average; 1 is usual

# --- counting ---------------------------------------------------------------------------------


@kernel
def count(symbols, size):
    """How often each of 0, 1, ..., size - 1 occurs: int64[size]."""
    counts = np.zeros(size, np.int64)
    for symbol in symbols:
        counts[symbol] += 1
    return counts


@kernel
def number(values, distinct, found, slots, shift, multiplier, numbers):
    """Number the values by the order in which they come: values[i] = distinct[numbers[i]].

    ``distinct``: uint64, the first ``found`` of them known already. ``slots``: a hash table of
    number + 1, int32[2**(64 - shift)]. Returns how many values are distinct, -1 if there are
    more than ``distinct`` has room for, or -2 if too many of them fall on the same slots, which
    another odd ``multiplier`` may mend.

    Example: [7, 7, 5, 7] -> numbers [0, 0, 1, 0], distinct [7, 5]
    """
    left = MAX_PROBES * (len(values) + 1024)  # an unlucky few among many lucky ones are no matter
    for i in range(len(values)):
        slot = np.int64(values[i] * multiplier >> shift)
        while slots[slot] > 0 and distinct[slots[slot] - 1] != values[i]:
            slot = (slot + 1) & (len(slots) - 1)
            left -= 1
        if left < 0:
            return -2
        if slots[slot] == 0:
            if found == len(distinct):
                return -1
            distinct[found] = values[i]
            found += 1
            slots[slot] = found
        numbers[i] = slots[slot] - 1
    return found


# --- writing bits -----------------------------------------------------------------------------


@kernel
def pack_words(symbols, table, out, at):
    """Write the code words of ``symbols``, of up to 31 bits, from bit ``at`` on; return the end.

    table[s] is word << 6 | length.

    Example: words 0, 10, 11 for 0, 1, 2: [0, 2, 1] -> 0b01110
    """
    byte, held = np.uint64(at) >> 3, at & 7
    bits = np.uint64(out[byte]) >> (8 - held)  # the last ``held`` bits are yet to be stored
    for symbol in symbols:
        entry = table[symbol]
        bits = bits << (entry & 63) | entry >> 6
        held += np.int64(entry & 63)
        if held >= 32:
            held -= 32
            store(out, byte, bits >> held)
            byte += np.uint64(4)
    store(out, byte, bits << (32 - held))
    return np.int64(byte) * 8 + held


@kernel
def pack_fields(values, widths, out, at):
    """Write the low widths[i] bits (0 to 64) of each values[i] from bit ``at`` on."""
    byte, held = np.uint64(at) >> 3, at & 7
    bits = np.uint64(out[byte]) >> (8 - held)
    for i in range(len(values)):
        left = np.int64(widths[i])
        while left > 0:
            step = 32 if left > 32 else left
            left -= step
            bits = bits << step | (values[i] >> left) & ((np.uint64(1) << step) - np.uint64(1))
            held += step
            if held >= 32:
                held -= 32
                store(out, byte, bits >> held)
                byte += np.uint64(4)
    store(out, byte, bits << (32 - held))
    return np.int64(byte) * 8 + held


@helper
def store(out, byte, word):
    """The low 32 bits of ``word``, the first byte from the top."""
    for i in range(4):
        out[byte + np.uint64(i)] = word >> (24 - 8 * i)


# --- reading bits -----------------------------------------------------------------------------


@helper
def window(data, at):
    """The bits from ``at`` on, the first one on top: 57 of them at least."""
    byte, bits = np.uint64(at) >> 3, np.uint64(0)
    for i in range(8):
        bits = bits << 8 | data[byte + np.uint64(i)]
    return bits << (at & 7)


@helper
def peek(data, at, width):
    """The ``width`` bits (0 to 64) from ``at`` on as a number."""
    low = 32 if width > 32 else width
    high = width - low
    above = window(data, at) >> 1 >> (63 - high)  # a shift by 64 is undefined
    return above << low | window(data, at + high) >> 1 >> (63 - low)


@kernel
def unpack_words(data, at, end, table, width, values, out):
    """Decode from the bits at[0], at[1], ... on: one lane, or LANES of them at the same time.

    Each lane fills its part of ``out``, and ``at`` is moved to where it stops. table[w] is
    rank << 6 | length of the code word that the ``width`` bits w begin with; values[rank] is its
    symbol. Returns False if a word would begin beyond ``end``.

    Example: words 0, 10, 11 for 0, 1, 2, one lane: 0b01110 -> [0, 2, 1]
    """
    each = len(out) // len(at)
    if len(at) == LANES:  # a number that the compiler knows: 1.3 times as fast as one loop for both
        for i in range(each):
            for lane in range(LANES):
                if at[lane] > end:
                    return False
                entry = table[window(data, at[lane]) >> (64 - width)]
                out[lane * each + i] = values[entry >> 6]
                at[lane] += np.int64(entry & 63)
    else:
        for i in range(each):
            if at[0] > end:
                return False
            entry = table[window(data, at[0]) >> (64 - width)]
            out[i] = values[entry >> 6]
            at[0] += np.int64(entry & 63)
    return True


@kernel
def search_words(data, at, end, order, ends, ranks, width, values, out):
    """As ``unpack_words``, without a table that would be larger than all else: four times as slow.

    ``order``: the symbols' ranks by code word. Words of up to ``length`` bits are the first
    ranks[length] of these; the numbers of ``width`` bits that they begin are below ends[length].
    """
    each = len(out) // len(at)
    for lane in range(len(at)):
        for i in range(each):
            if at[lane] > end:
                return False
            word, length = window(data, at[lane]) >> (64 - width), 1
            while word >= ends[length]:
                length += 1
            beyond = (word - ends[length - 1]) >> (width - length)
            out[lane * each + i] = values[order[ranks[length - 1] + np.int64(beyond)]]
            at[lane] += length
    return True


@kernel
def merge_bits(data, at, width, shift, out):
    """Add a number of ``width`` bits (1 to 8), moved up by ``shift``, to each element of ``out``.

    Example: 0b0110, width 2, shift 8: [5, 7] -> [0x105, 0x207]
    """
    byte, offset = np.uint64(at) >> 3, at & 7
    if width == 8:
        for i in range(len(out)):
            both = data[byte] << offset | data[byte + np.uint64(1)] >> (8 - offset)
            out[i] |= (both & 255) << shift
            byte += np.uint64(1)
    else:
        for i in range(len(out)):
            out[i] |= window(data, at) >> (64 - width) << shift
            at += width


# --- heads and tails (heads.py) ------------------------------------------------------------------

# A value is its head, the bits from ``low`` on, and its tail: ``tails[b]`` of the bits below, of
# which the others are zero in all of block b. The code of its heads is number which[b].


@kernel
def survey(values, low, group, counts, totals):
    """Count the heads of each lane in every ``group`` blocks, counts[g, lane, head], and those of
    all lanes, totals[g, head]. Value i is in lane i % LANES."""
    for b in range(-(-len(values) // BLOCK)):
        block, lanes = values[b * BLOCK : (b + 1) * BLOCK], counts[b // group]
        size = np.uint64(len(block))
        for lane in range(np.uint64(LANES)):  # the cache next to the processor holds its counts
            heads = lanes[lane]
            for i in range(lane, size, np.uint64(LANES)):
                heads[np.uint64(block[i]) >> low] += np.uint16(1)
    for g in range(len(counts)):
        total, lanes = totals[g], counts[g]
        for lane in range(LANES):
            for head in range(len(total)):
                total[head] += lanes[lane, head]


@kernel
def lane_sizes(counts, which, lengths, sizes):
    """Add the bits of each lane's heads to sizes[lane]: counts[g, lane, head] of them have code
    words of lengths[which[g], head] bits."""
    for g in range(len(counts)):
        row = lengths[which[g]]
        for lane in range(LANES):
            heads, bits = counts[g, lane], np.uint64(0)
            for head in range(len(row)):
                bits += np.uint32(heads[head]) * np.uint32(row[head])
            sizes[lane] += np.int64(bits)


@kernel
def pack_lanes(values, low, tables, which, tails, sizes, out, at):
    """Write the lanes, of ``sizes`` bits, from bit ``at`` on; value i is in lane i % LANES.

    tables[k, head] is word << 4 | length. All lanes grow at the same time, eight bytes at once, so
    that the last bytes of one are stored over the first of the next: these are kept apart. The
    first block alone gives each lane more than eight bytes (heads.LEAST).
    """
    ones = (np.uint64(1) << low) - np.uint64(1)
    ends, begun = np.empty(LANES, np.int64), np.zeros(LANES, np.uint64)
    first = np.zeros(LANES + 1, np.uint64)
    begun[0] = np.uint64(out[at >> 3]) << 56  # the bits of a byte that is yet to be stored
    for lane in range(LANES):
        ends[lane] = at
        at += sizes[lane]
    for b in range(len(which)):
        block, row, tail = values[b * BLOCK : (b + 1) * BLOCK], tables[which[b]], tails[b]
        pairs = len(block) & -2 * LANES if tail <= 16 else 0  # two words in one go
        for lane in range(LANES):
            begin = np.uint64(ends[lane] >> 3)
            byte, held, bits = begin, np.uint64(ends[lane] & 7), begun[lane]
            for i in range(lane, pairs, 2 * LANES):
                value, other = np.uint64(block[i]), np.uint64(block[i + LANES])
                entry, more = np.uint64(row[value >> low]), np.uint64(row[other >> low])
                word = entry >> 4 << tail | (value & ones) >> (low - tail)
                width = (more & np.uint64(15)) + tail
                word = word << width | more >> 4 << tail | (other & ones) >> (low - tail)
                width += (entry & np.uint64(15)) + tail
                byte, held, bits = put(word, width, byte, held, bits, out)
            for i in range(pairs + lane, len(block), LANES):
                value = np.uint64(block[i])
                entry, rest = np.uint64(row[value >> low]), (value & ones) >> (low - tail)
                word, width = entry >> 4, entry & np.uint64(15)
                if tail > 44:  # together they may be more than fits
                    byte, held, bits = put(word, width, byte, held, bits, out)
                    word, width = rest, tail
                else:
                    word, width = word << tail | rest, width + tail
                byte, held, bits = put(word, width, byte, held, bits, out)
            ends[lane], begun[lane] = np.int64(byte) * 8 + np.int64(held), bits
            if b == 0:
                for i in range(8):
                    first[lane] = first[lane] << 8 | np.uint64(out[begin + np.uint64(i)])
    for lane in range(LANES):
        store_all(out, np.uint64(ends[lane] >> 3), begun[lane] | first[lane + 1])
    return at


@helper
def put(word, width, byte, held, bits, out):
    """Store ``word``, of up to 56 bits, behind the first ``held`` bits of ``bits``.

    Returns the next byte to be stored, and what is held of it, less than 8 bits.
    """
    held += width
    bits |= word << (np.uint64(64) - held)
    store_all(out, byte, bits)
    return byte + (held >> np.uint64(3)), held & np.uint64(7), bits << (held & np.uint64(56))


@helper
def store_all(out, byte, word):
    """The 64 bits of ``word``, the first byte from the top."""
    for i in range(8):
        out[byte + np.uint64(i)] = word >> (56 - 8 * i)


@helper
def take(bits, row, tail, low):
    """The value that ``bits`` begin with, and how many of them it takes."""
    entry = np.uint64(row[bits >> (64 - LONGEST)])
    length = entry & np.uint64(15)
    rest = bits << length >> (np.uint64(64) - tail)
    return entry >> 4 << low | rest << (low - tail), length + tail


@kernel
def unpack_lanes(data, at, end, tables, which, tails, low, out):
    """Read what ``pack_lanes`` has written: blocks of ``out`` from the bits ``at`` of the lanes on.

    ``at`` is moved to where each stops. tables[k, w] is head << 4 | length of the code word that
    the bits w begin with. Returns False if a word would begin beyond ``end``.
    """
    for b in range(len(which)):
        block, row, tail = out[b * BLOCK : (b + 1) * BLOCK], tables[which[b]], tails[b]
        many = 0
        if tail <= 16:  # a window holds two words and their tails
            many = len(block) & -2 * LANES
            for i in range(0, many, 2 * LANES):
                for lane in range(LANES):
                    place = at[lane]
                    if place > end:
                        return False
                    bits = window(data, place)
                    value, width = take(bits, row, tail, low)
                    other, more = take(bits << width, row, tail, low)
                    at[lane] = place + np.int64(width + more)
                    block[i + lane], block[i + LANES + lane] = value, other
        elif tail <= 45:
            many = len(block) & -LANES
            for i in range(0, many, LANES):
                for lane in range(LANES):
                    place = at[lane]
                    if place > end:
                        return False
                    value, width = take(window(data, place), row, tail, low)
                    at[lane] = place + np.int64(width)
                    block[i + lane] = value
        for i in range(many, len(block)):
            lane = i & (LANES - 1)
            if at[lane] > end:
                return False
            entry = np.uint64(row[window(data, at[lane]) >> (64 - LONGEST)])
            at[lane] += np.int64(entry & np.uint64(15))
            rest = peek(data, at[lane], np.int64(tail))  # more than a window has
            block[i] = entry >> 4 << low | rest << (low - tail)
            at[lane] += np.int64(tail)
    return True


# --- integers: tokens and raw bits --------------------------------------------------------------


@helper
def token_of(value, split, kept):
    """Token and number of raw bits of a non-negative integer (see net/codec/positions.py)."""
    if value >> split == 0:
        return value, 0
    magnitude = split
    while value >> (magnitude + 1) > 0:
        magnitude += 1
    raw = magnitude - kept
    top = (value >> raw) & ((1 << kept) - 1)
    return (1 << split) + ((magnitude - split) << kept) + top, raw


@kernel
def split_values(values, split, kept):
    """The token (uint16) and the number of raw bits (uint8) of each value."""
    tokens, widths = np.empty(len(values), np.uint16), np.empty(len(values), np.uint8)
    for i in range(len(values)):
        tokens[i], widths[i] = token_of(values[i], split, kept)
    return tokens, widths


@kernel
def split_costs(distinct, counts, total, costs):
    """costs[split, kept]: about the bits of ``distinct`` (ascending), ``total`` in all.

    The entropy of the tokens, the raw bits, and a guess at the code table: 3 bits for every
    token that could occur, one less if it does. Infinite if a token is 1024 or more.
    """
    for split in range(costs.shape[0]):
        for kept in range(1 + (split if split < 2 else 2)):
            bits, before, together = 0.0, -1, 0  # of the same token
            for i in range(len(distinct)):
                token, raw = token_of(distinct[i], split, kept)
                bits += counts[i] * raw
                if token != before:
                    if together > 0:
                        bits += together * math.log2(total / together)
                    bits += 3 * (token - before) - 1
                    before, together = token, 0
                together += counts[i]
            bits += together * math.log2(total / together)
            costs[split, kept] = bits if before < 1024 else np.inf


@kernel
def unpack_integers(data, at, tokens, least, widths, out):
    """out[i]: least[t] and widths[t] raw bits, t = tokens[i]; returns the end."""
    for i in range(len(tokens)):
        width = widths[tokens[i]]
        out[i] = least[tokens[i]] + np.int64(peek(data, at, width))
        at += width
    return at


# --- sets: binary interpolative code -------------------------------------------------------------


@kernel
def code_set(members, largest, data, at, end, values, widths):
    """Write a set in [0, largest], ascending (see net/codec/bits.py), or read it with ``data``.

    Without data: the fields ``values``, ``widths`` are made from ``members``. With it: the
    members are read from bit ``at`` on. Returns the end, or -1 if that is beyond ``end``.
    """
    first, count = np.empty(65, np.int64), np.empty(65, np.int64)  # ranges yet to be coded
    low, high = np.empty(65, np.uint64), np.empty(65, np.uint64)
    first[0], count[0], low[0], high[0] = 0, len(members), 0, largest
    depth = 1 if len(members) > 0 else 0
    done = 0
    while depth > 0:
        depth -= 1
        start, half, bottom = first[depth], count[depth] >> 1, low[depth]
        right = count[depth] - half - 1  # members above the middle one
        least = bottom + np.uint64(half)
        span = high[depth] - np.uint64(right) - least  # the values that it can have, minus 1
        width, ones = 0, np.uint64(0)
        while ones < span:
            width, ones = width + 1, ones << 1 | np.uint64(1)
        short = ones - span  # values below take a bit less
        if len(data) > 0:
            if at > end:
                return -1
            value = np.uint64(0)
            if width > 0:
                value = peek(data, at, width - 1)
            if value < short:
                width -= 1
            elif width > 0:
                value = peek(data, at, width) - short
            at += width
            members[start + half] = least + value
        else:
            value = members[start + half] - least
            if value < short:
                width -= 1
            else:
                value += short
            values[done], widths[done] = value, width
            done += 1
        member = members[start + half]
        if right > 0:
            first[depth], count[depth], low[depth] = start + half + 1, right, member + np.uint64(1)
            depth += 1
        if half > 0:
            first[depth], count[depth] = start, half
            low[depth], high[depth] = bottom, member - np.uint64(1)
            depth += 1
    return at


# --- code lengths and their table ----------------------------------------------------------------


@kernel
def canonical_words(lengths, longest):
    """The code words uint64: consecutive numbers in the order of length, ties by symbol.

    Example: lengths 3, 1, 3, 2 -> 0b110, 0b0, 0b111, 0b10
    """
    words = np.empty(len(lengths), np.uint64)
    after = np.zeros(longest + 2, np.int64)  # after[n]: the next word of n bits
    for length in lengths:
        after[np.int64(length) + 1] += 1
    for length in range(1, longest + 1):
        after[length] = (after[length - 1] + after[length]) << 1
    for i in range(len(lengths)):
        words[i] = after[lengths[i]]
        after[lengths[i]] += 1
    return words


@kernel
def table_entries(symbols, lengths, before, fields, widths):
    """The entries of a small table (see net/codec/codes.py): widths[s] bits of fields[s] for each
    s up to the last of ``symbols``; the length of the first is compared with ``before``."""
    fields[:], widths[:] = 0b110, 3
    for i in range(len(symbols)):
        symbol, length = symbols[i], np.int64(lengths[i])
        step = length - before
        before = length
        if step == 0:
            fields[symbol], widths[symbol] = 0, 1
        elif abs(step) == 1:
            fields[symbol] = 0b100 if step > 0 else 0b101
        else:
            fields[symbol], widths[symbol] = 0b111 << 5 | length, 8


@kernel
def package_merge(leaves, limit):
    """The lengths of an optimal code without any above ``limit``, of ascending counts.

    (Larmore and Hirschberg 1990.) In every round pair up the list, from the smallest entry on,
    and merge the packages with the counts, a count before a package that is equal. Of the last
    list the 2n - 2 smallest entries matter; what they contain is followed back through the
    rounds: a symbol's length is the number of lists in which it is among those that matter.

    Example: [1, 1, 2, 5], limit 3 -> [3, 3, 2, 1]
    """
    n, lengths = len(leaves), np.zeros(len(leaves), np.uint8)
    packages = np.empty(n, np.int64)
    merged = np.empty(2 * n, np.int64)
    leaves_before = np.zeros((limit, 2 * n), np.int32)  # among the first entries of each list
    size = 0
    for level in range(limit):
        leaf = package = 0
        while leaf < n or package < size:
            if package == size or (leaf < n and leaves[leaf] <= packages[package]):
                merged[leaf + package] = leaves[leaf]
                leaf += 1
            else:
                merged[leaf + package] = packages[package]
                package += 1
            leaves_before[level, leaf + package - 1] = leaf
        size = (leaf + package) >> 1
        for i in range(size):
            packages[i] = merged[2 * i] + merged[2 * i + 1]
    take = 2 * n - 2
    for level in range(limit - 1, -1, -1):
        if take == 0:
            break
        chosen = leaves_before[level, take - 1]
        for i in range(chosen):
            lengths[i] += 1
        take = 2 * (take - chosen)
    return lengths


# --- non-zeros of a matrix in blocks (positions.py) ----------------------------------------------


@kernel
def transpose(starts, columns, column_sums):
    """The same non-zeros column by column: where each begins, the rows, and the i of each.

    Row r has the columns[starts[r] : starts[r + 1]].

    Example: (0, 1), (0, 3), (1, 0) -> starts [0, 1, 2, 2, 3], rows [1, 0, 0], order [2, 0, 1]
    """
    begins = np.zeros(len(column_sums) + 1, np.int64)
    for i in range(len(column_sums)):  # an array into a slice takes two seconds to compile
        begins[i + 1] = begins[i] + column_sums[i]
    at, rows, order = begins.copy(), np.empty_like(columns), np.empty(len(columns), np.uint32)
    for row in range(len(starts) - 1):
        for i in range(starts[row], starts[row + 1]):
            column = columns[i]
            rows[at[column]] = row
            order[at[column]] = i
            at[column] += 1
    return begins, rows, order


@kernel
def block_gaps(starts, columns, most, row_class, row_rank, column_class, column_rank, widths):
    """Sort the non-zeros into blocks, and note the gap before each in its block.

    Row r is number row_rank[r] of class row_class[r], 1 to ``most``; columns likewise, widths[k] in
    class k. A block is a row class and a column class. Returns the sizes of the blocks, and block
    after block the gaps and the i of each non-zero.

    Example: one block of width 4, (0, 1), (0, 3), (1, 0) -> [3], gaps [1, 1, 0], order [0, 1, 2]
    """
    classes = len(widths) - 1
    sizes = np.zeros(most * classes, np.int64)
    gaps, order = np.empty(len(columns), np.int64), np.empty(len(columns), np.uint32)
    for row in range(len(starts) - 1):
        first = (row_class[row] - 1) * classes - 1
        for i in range(starts[row], starts[row + 1]):
            sizes[first + column_class[columns[i]]] += 1
    at, last, begin = np.empty_like(sizes), np.empty_like(sizes), 0
    for block in range(len(sizes)):
        at[block], last[block] = begin, -1
        begin += sizes[block]
    for row in range(len(starts) - 1):
        first = (row_class[row] - 1) * classes - 1
        for i in range(starts[row], starts[row + 1]):
            kind = column_class[columns[i]]
            place = row_rank[row] * widths[kind] + column_rank[columns[i]]
            gaps[at[first + kind]] = place - last[first + kind] - 1
            order[at[first + kind]] = i
            last[first + kind] = place
            at[first + kind] += 1
    return sizes, gaps, order


@kernel
def places(gaps, last, rows, columns, row_step, column_step, out):
    """The flat positions of a block's non-zeros; False if one lies outside.

    ``last``: row and column, inside the block, of the non-zero before these, [0, -1] at first;
    moved on to the last of these.

    Example: gaps [1, 1, 0], rows [0, 2], columns [0, 1, 2, 3], steps 4, 1 -> [1, 3, 8]
    """
    row, column = last
    for i in range(len(gaps)):
        if gaps[i] >= len(rows) * len(columns):
            return False
        column += gaps[i] + 1
        while column >= len(columns):
            column -= len(columns)
            row += 1
        if row >= len(rows):
            return False
        out[i] = rows[row] * row_step + columns[column] * column_step
    last[0], last[1] = row, column
    return True
