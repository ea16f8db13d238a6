// Gibbs sweeps of Ising models in byte lanes: many chains side by side, or the sites of one large torus. CPU only; the same draws and
// the same integers as IsingGibbs, hence the same bits.
#pragma once

#include "ising.h"
#include "tile.h"

#if !defined(__CUDACC__)

EBM_BEGIN
namespace {

// Where all sites have one coupling and one field: the threshold's high byte, all of it, and the likely value, by the sum of
// neighbouring spins plus max_degree.
struct SumTable {
    static constexpr int64_t kMaxDegree = 7;
    uint8_t high[16], likely[16];
    uint32_t threshold[16];

    EBM_HD SumTable(const IsingModel& m, int64_t max_degree) {
        const float scale = static_cast<float>(2.0 * *m.unit);
        for (int i = 0; i < 16; ++i) {
            int32_t local = m.field[0] + (i <= 2 * max_degree ? i - static_cast<int32_t>(max_degree) : 0) * m.couplings[0];
            threshold[i] = rare_threshold<float>(local, scale);
            high[i] = static_cast<uint8_t>(threshold[i] >> 24);
            likely[i] = static_cast<uint8_t>(local >= 0 ? 1 : -1);
        }
    }
};

// Draws whose first byte did not decide: the likely value stands for them until `settle` has drawn the other 24 bits, several at once.
class TieList {
public:
    EBM_HD TieList(const PhiloxKey& key) : key_(key) {}

    // A spin, its threshold, whether it changed so far, and what counts its changes.
    EBM_HD void add(int8_t* spin, uint32_t threshold, bool is_changed, int64_t* flips, uint64_t chain, int64_t position) {
        spins_[count_] = spin;
        low_bits_[count_] = threshold & 0xffffffu;
        gain_[count_] = is_changed ? -1 : 1;
        flips_[count_] = flips;
        chains_[count_] = chain;
        positions_[count_] = static_cast<uint64_t>(position);
        ++count_;
    }

    // Enough for a whole vector of draws; or none for `count` more.
    EBM_HD bool is_due(int count) const { return count_ >= kLanes / 2 || count_ + count > kRoom; }

    __attribute__((noinline)) void settle(uint64_t step) {
        constexpr int kWidth = kLanes / 2;
        for (int begin = 0; begin < count_; begin += kWidth) {
            const U64 chains = load<U64>(chains_ + begin), places = load<U64>(positions_ + begin);
            const U64 c3 = ((chains >> 32) << 8) | philox_c3(step, 0, kTieStream);
            U64 blocks[1] = {places >> 2}, words[1][4];
            PhiloxRow<U64> rows[1] = {philox_row<U64>(U64{} + step, chains, c3, key_)};
            philox4x32<1>(blocks, rows, key_, words);
            uint64_t drawn[4][kWidth];
            for (int j = 0; j < 4; ++j) store(drawn[j], words[0][j]);
            const int stop = count_ - begin < kWidth ? count_ - begin : kWidth;
            for (int i = 0; i < stop; ++i) {
                const int k = begin + i;
                const bool is_rare = static_cast<uint32_t>(drawn[positions_[k] & 3][i]) >> 8 < low_bits_[k];
                *spins_[k] = static_cast<int8_t>((*spins_[k] ^ -is_rare) + is_rare);
                *flips_[k] += is_rare * gain_[k];
            }
        }
        count_ = 0;
    }

private:
    static constexpr int kRoom = 1024 + kLanes;
    const PhiloxKey& key_;
    int count_ = 0;
    int8_t* spins_[kRoom];
    uint32_t low_bits_[kRoom];
    int gain_[kRoom];
    int64_t* flips_[kRoom];
    uint64_t chains_[kRoom] = {}, positions_[kRoom] = {};
};

// Lanes that changed, counted in bytes and emptied before they overflow.
class FlipCount {
public:
    EBM_HD void add(U8 is_changed) { counts_ -= is_changed; }
    EBM_HD const U8& counts() const { return counts_; }
    EBM_HD void clear() { counts_ = U8{}; }

private:
    U8 counts_ = U8{};
};

// kBytes chains from `first`, site by site: chains are lanes.
class IsingGibbsChains {
public:
    // spins of the group, (num_sites, kBytes)
    static EBM_HD int64_t scratch_bytes(int64_t num_sites) { return num_sites * kBytes; }

    IsingGibbsChains(const IsingGibbsParams& p, int64_t first, void* scratch)
        : p_(p),
          m_(p.model),
          key_(philox_key(static_cast<uint64_t>(p.key[0]))),
          first_(first),
          id_(static_cast<uint64_t>(p.key[2] + first)),
          scale_(static_cast<float>(2.0 * *p.model.unit)),
          count_(p.num_chains - first < kBytes ? static_cast<int>(p.num_chains - first) : kBytes),
          spins_(static_cast<int8_t*>(scratch)) {}

    void run() {
        transpose<true>();
        if (m_.has_one_coupling && m_.has_one_field && m_.max_degree <= SumTable::kMaxDegree) {
            SumTable table(m_, m_.max_degree);
            BySum rule(table);
            sweeps(rule);
        } else {
            ByField rule;
            sweeps(rule);
        }
        transpose<false>();
    }

private:
    // rule.decide(*this, site, j): the new spins at the j-th position of a block, but for ties_of_[j]; rule.threshold(j, lane).
    template <class Rule>
    EBM_HD void sweeps(Rule& rule) {
        const int64_t n = m_.num_sites;
        for (int64_t t = 0; t < p_.num_steps; ++t) {
            step_ = static_cast<uint64_t>(p_.key[1] + t);
            start_step();
            int since = 0;
            FlipCount flips;
            const int64_t* colour = p_.colour_offsets;
            for (int64_t begin = 0; begin < n; begin += 16) {
                const int64_t end = begin + 16 < n ? begin + 16 : n;
                draw_bytes(begin >> 4);
                // Sites of one colour do not see one another: their ties can wait.
                while (colour && *colour <= begin) ++colour;
                const bool can_wait = colour && *colour >= end;
                if (colour && *colour < end) ties_.settle(step_);
                int pending[16], count = 0;
                for (int64_t position = begin; position < end; ++position) {
                    const int j = static_cast<int>(position - begin);
                    byte_ = load<U8>(bytes_[j]);
                    const int64_t site = p_.order ? p_.order[position] : position;
                    int8_t* spins = spins_ + site * kBytes;
                    U8 old = load<U8>(spins), now = rule.decide(*this, site, j);
                    store(spins, now);
                    U8 is_changed = (U8)(old != now);
                    flips.add(is_changed);
                    changed_[j] = byte_bits(is_changed);
                    pending[count] = j;
                    count += ties_of_[j] != 0;
                    if (!can_wait && count) {
                        add_ties(rule, begin, j);
                        ties_.settle(step_);
                        count = 0;
                    }
                }
                for (int i = 0; i < count; ++i) add_ties(rule, begin, pending[i]);
                if (ties_.is_due(16 * kBytes) || (colour && *colour == end)) ties_.settle(step_);
                if ((since += 16) > 255 - 16) {
                    this->count(flips);
                    since = 0;
                }
            }
            ties_.settle(step_);
            count(flips);
        }
    }

    template <class Rule>
    EBM_HD void add_ties(const Rule& rule, int64_t begin, int j) {
        int8_t* spins = spins_ + (p_.order ? p_.order[begin + j] : begin + j) * kBytes;
        for (uint64_t ties = ties_of_[j]; ties; ties &= ties - 1) {
            const int lane = __builtin_ctzll(ties);
            int64_t* flips = p_.num_flips && lane < count_ ? p_.num_flips + first_ + lane : &unwanted_flips_;
            ties_.add(spins + lane, rule.threshold(j, lane), changed_[j] >> lane & 1, flips, id_ + static_cast<uint64_t>(lane), begin + j);
        }
    }

    EBM_HD void count(FlipCount& flips) {
        if (p_.num_flips) {
            uint8_t counts[kBytes];
            store(counts, flips.counts());
            for (int c = 0; c < count_; ++c) p_.num_flips[first_ + c] += counts[c];
        }
        flips.clear();
    }

    // One coupling, one field: by the sum of the neighbours.
    struct BySum {
        const SumTable& table;
        alignas(64) uint8_t sums[16][kBytes];

        explicit BySum(const SumTable& table) : table(table) {}

        EBM_HD U8 decide(IsingGibbsChains& g, int64_t site, int j) {
            const int64_t end = g.m_.offsets[site + 1];
            U8 sum = U8{} + static_cast<uint8_t>(g.m_.max_degree);
            for (int64_t k = g.m_.offsets[site]; k < end; ++k) sum += load<U8>(g.spins_ + int64_t{g.m_.neighbours[k]} * kBytes);
            store(sums[j], sum);
            return g.choose(lookup(table.high, sum), lookup(table.likely, sum), j);
        }
        EBM_HD uint32_t threshold(int j, int lane) const { return table.threshold[sums[j][lane]]; }
    };

    // Byte c of a register belongs to chain c: lane l of the m-th vector of words to chain 4l + m.
    struct ByField {
        alignas(64) uint32_t thresholds[16][4][kLanes];

        EBM_HD U8 decide(IsingGibbsChains& g, int64_t site, int j) {
            I32 local[4];
            EBM_UNROLL for (int m = 0; m < 4; ++m)
                local[m] = I32{} + field_at(g.m_, site);
            for (int64_t k = g.m_.offsets[site]; k < g.m_.offsets[site + 1]; ++k) {
                const U32 others = load<U32>(g.spins_ + int64_t{g.m_.neighbours[k]} * kBytes);
                const int32_t coupling = coupling_at(g.m_, k);
                EBM_UNROLL for (int m = 0; m < 4; ++m) {
                    I32 is_down = (I32)(others << (24 - 8 * m)) >> 31;  // -1 where the spin is -1
                    local[m] += (is_down ^ coupling) - is_down;
                }
            }
            U32 high{}, likely{};
            EBM_UNROLL for (int m = 0; m < 4; ++m) {
                U32 threshold = rare_threshold<F32>(local[m], g.scale_);
                store(thresholds[j][m], threshold);
                high |= threshold >> 24 << 8 * m;
                likely |= (((U32)(local[m] >> 31) & 0xfeu) | 0x01u) << 8 * m;  // 1 or -1
            }
            return g.choose((U8)high, (U8)likely, j);
        }
        EBM_HD uint32_t threshold(int j, int lane) const { return thresholds[j][lane & 3][lane >> 2]; }
    };

    EBM_HD U8 choose(U8 high, U8 likely, int j) {
        ties_of_[j] = byte_bits((U8)(byte_ == high));
        U8 is_rare = (U8)(byte_ < high);
        return (likely ^ is_rare) - is_rare;  // negated where is_rare is -1
    }

    EBM_HD void start_step() {
        for (int v = 0; v < 8; ++v) {
            uint64_t chains[kLanes / 2], c3[kLanes / 2];
            for (int i = 0; i < kLanes / 2; ++i) {
                chains[i] = id_ + static_cast<uint64_t>(4 * (2 * i + v % 2) + v / 2);  // see draw_bytes
                c3[i] = philox_c3(step_, chains[i], kProposalStream);
            }
            rows_[v] = philox_row<U64>(U64{} + step_, load<U64>(chains), load<U64>(c3), key_);
        }
    }

    // bytes_[j]: byte j of block `block` of every chain. Of the vectors of words, lane l of the m-th belongs to chain 4l + m, so
    // that transposing 4 x 4 bytes in each lane puts the chains in order.
    EBM_HD void draw_bytes(int64_t block) {
        uint32_t words[4][4][kLanes];
        EBM_UNROLL for (int part = 0; part < 2; ++part) {
            U64 blocks[4], out[4][4];
            EBM_UNROLL for (int v = 0; v < 4; ++v)
                blocks[v] = U64{} + static_cast<uint64_t>(block);
            PhiloxRow<U64> rows[4] = {rows_[4 * part], rows_[4 * part + 1], rows_[4 * part + 2], rows_[4 * part + 3]};
            philox4x32<4>(blocks, rows, key_, out);
            EBM_UNROLL for (int j = 0; j < 4; ++j) {
                store(words[2 * part][j], merge(out[0][j], out[1][j]));
                store(words[2 * part + 1][j], merge(out[2][j], out[3][j]));
            }
        }
        EBM_UNROLL for (int j = 0; j < 4; ++j) {
            U32 m0 = load<U32>(words[0][j]), m1 = load<U32>(words[1][j]), m2 = load<U32>(words[2][j]), m3 = load<U32>(words[3][j]);
            U32 even01 = (m0 & 0x00ff00ffu) | ((m1 & 0x00ff00ffu) << 8), odd01 = ((m0 >> 8) & 0x00ff00ffu) | (m1 & 0xff00ff00u);
            U32 even23 = (m2 & 0x00ff00ffu) | ((m3 & 0x00ff00ffu) << 8), odd23 = ((m2 >> 8) & 0x00ff00ffu) | (m3 & 0xff00ff00u);
            store(bytes_[4 * j], (even01 & 0xffffu) | (even23 << 16));
            store(bytes_[4 * j + 1], (odd01 & 0xffffu) | (odd23 << 16));
            store(bytes_[4 * j + 2], (even01 >> 16) | (even23 & 0xffff0000u));
            store(bytes_[4 * j + 3], (odd01 >> 16) | (odd23 & 0xffff0000u));
        }
    }

    // Between (chain, site) and (site, lane), 8 x 8 bytes at a time. Idle lanes repeat the last chain.
    template <bool kIn>
    void transpose() const {
        const int64_t n = m_.num_sites;
        int8_t* const lanes = spins_;
        for (int first = 0; first < kBytes; first += 8) {
            int8_t* rows[8];
            for (int c = 0; c < 8; ++c) rows[c] = p_.spins + (first_ + (first + c < count_ ? first + c : count_ - 1)) * n;
            const int wanted = kIn ? 8 : count_ - first < 8 ? count_ - first : 8;
            int64_t site = 0;
            for (; site + 8 <= n && wanted == 8; site += 8) {
                uint64_t x[8];
                EBM_UNROLL for (int c = 0; c < 8; ++c)
                    memcpy(&x[c], kIn ? rows[c] + site : lanes + (site + c) * kBytes + first, 8);
                transpose_8x8(x);
                EBM_UNROLL for (int c = 0; c < 8; ++c)
                    memcpy(kIn ? lanes + (site + c) * kBytes + first : rows[c] + site, &x[c], 8);
            }
            for (; site < n; ++site) {
                for (int c = 0; c < wanted; ++c) {
                    if (kIn) lanes[site * kBytes + first + c] = rows[c][site];
                    if (!kIn) rows[c][site] = lanes[site * kBytes + first + c];
                }
            }
        }
    }

    static EBM_HD void transpose_8x8(uint64_t (&x)[8]) {
        constexpr uint64_t masks[3] = {0x00ff00ff00ff00ffu, 0x0000ffff0000ffffu, 0x00000000ffffffffu};
        EBM_UNROLL for (int level = 0; level < 3; ++level) {
            const int stride = 1 << level, shift = 8 << level;
            EBM_UNROLL for (int i = 0; i < 8; ++i) {
                if (i & stride) continue;
                uint64_t a = x[i], b = x[i + stride];
                x[i] = (a & masks[level]) | (b << shift & ~masks[level]);
                x[i + stride] = (a >> shift & masks[level]) | (b & ~masks[level]);
            }
        }
    }

    const IsingGibbsParams& p_;
    const IsingModel& m_;
    const PhiloxKey key_;
    const int64_t first_;
    const uint64_t id_;
    const float scale_;
    const int count_;
    int8_t* const spins_;  // (num_sites, kBytes)
    uint64_t step_ = 0;
    U8 byte_ = U8{};
    uint64_t ties_of_[16], changed_[16];
    int64_t unwanted_flips_ = 0;
    TieList ties_{key_};
    PhiloxRow<U64> rows_[8];
    alignas(64) uint8_t bytes_[16][kBytes];
};

// One torus, rows of which hold their even sites, then their odd ones ("even": the coordinates add up to an even number): sites
// are lanes. A half sweep reads one half of the rows and writes the other.
class IsingTorus {
public:
    IsingTorus(const IsingGibbsParams& p, int64_t chain)
        : p_(p),
          table_(p.model, 2 * p.num_dims),
          key_(philox_key(static_cast<uint64_t>(p.key[0]))),
          id_(static_cast<uint64_t>(p.key[2] + chain)),
          side_(p.sides[p.num_dims - 1]),
          half_(side_ / 2),
          num_rows_(1) {
        for (int d = 0; d + 1 < p.num_dims; ++d) num_rows_ *= p.sides[d];
        spins_ = p.spins + chain * num_rows_ * side_;
    }

    int64_t num_rows() const { return num_rows_; }

    // Rows from row-major order to halves, or back.
    template <bool kIn>
    void split(int64_t begin, int64_t end, int8_t* buffer) const {
        for (int64_t row = begin; row < end; ++row) {
            int8_t* spins = spins_ + row * side_;
            int64_t even = parity(row);  // where the first even site of the row is
            memcpy(buffer, spins, static_cast<size_t>(side_));
            if (kIn) {
                for (int64_t k = 0; k < half_; ++k) {
                    spins[k] = buffer[2 * k + even];
                    spins[half_ + k] = buffer[2 * k + 1 - even];
                }
            } else if (even == 0) {
                interleave(buffer, buffer + half_, spins);
            } else {
                interleave(buffer + half_, buffer, spins);
            }
        }
    }

    // The sites of one colour in rows [begin, end); `buffer` has room for half a row and 2 · kBytes. Returns how many changed.
    int64_t half_sweep(int64_t t, int colour, int64_t begin, int64_t end, int8_t* buffer) const {
        const uint64_t step = static_cast<uint64_t>(p_.key[1] + t);
        const PhiloxRow<uint64_t> row_constants = philox_row<uint64_t>(step, id_, philox_c3(step, id_, kProposalStream), key_);
        int64_t position = (colour * num_rows_ + begin) * half_, drawn = position / 16 * 16, flips = 0;
        constexpr int64_t kChunk = 16 * kLanes * kTiles;
        alignas(64) uint8_t bytes[kChunk + 16 * kLanes * kTiles + kBytes];  // of positions [drawn - what is left, drawn)
        int64_t filled = drawn;
        TieList tie_list(key_);
        constexpr int kPending = 8;  // vectors with ties, dealt with together
        alignas(64) uint8_t sums[kPending][kBytes];
        uint64_t ties_of[kPending], changed_of[kPending];
        int64_t first_of[kPending];
        int pending = 0;
        for (int64_t row = begin; row < end; ++row) {
            int8_t* own = spins_ + row * side_ + colour * half_;
            const int8_t* across = spins_ + row * side_ + (1 - colour) * half_;
            // Sites of this colour are at 2k + shift: their neighbours along the row are entries k - 1 + shift and k + shift of the other.
            const int64_t shift = (parity(row) + colour) & 1;
            buffer[kBytes - 1] = across[half_ - 1];
            memcpy(buffer + kBytes, across, static_cast<size_t>(half_));
            buffer[kBytes + half_] = across[0];
            const int8_t* left = buffer + kBytes - 1 + shift;
            const int8_t* others[2 * (kMaxLatticeDims - 1)];
            const int num_others = rows_beside(row, colour, others);
            U8 changed = U8{};
            int since = 0;
            for (int64_t k = 0; k < half_; k += kBytes, position += kBytes) {
                const int64_t count = half_ - k < kBytes ? half_ - k : kBytes;
                while (position + count > filled) {  // keep what is not used yet, and draw on behind it
                    int64_t kept = filled - position > 0 ? filled - position : 0;
                    if (kept) memmove(bytes, bytes + (position - drawn), static_cast<size_t>(kept));
                    drawn = filled - kept;
                    draw_bytes(row_constants, filled / 16, bytes + kept);
                    filled += kChunk;
                }
                U8 byte = load<U8>(bytes + (position - drawn));
                U8 sum = load<U8>(left + k) + load<U8>(left + k + 1) + static_cast<uint8_t>(2 * p_.num_dims);
                for (int i = 0; i < num_others; ++i) sum += load_some(others[i] + k, count);
                sum &= 15;  // beyond `count` there is anything
                U8 high = lookup(table_.high, sum), likely = lookup(table_.likely, sum);
                U8 is_rare = (U8)(byte < high);
                uint64_t ties = byte_bits((U8)(byte == high));
                if (count < kBytes) ties &= (uint64_t{1} << count) - 1;
                U8 now = (likely ^ is_rare) - is_rare, old = load_some(own + k, count);
                if (count == kBytes) {
                    store(own + k, now);
                    changed -= (U8)(old != now);
                } else {
                    uint8_t lanes[kBytes], before[kBytes];
                    store(lanes, now);
                    store(before, old);
                    memcpy(own + k, lanes, static_cast<size_t>(count));
                    for (int64_t i = 0; i < count; ++i) flips += lanes[i] != before[i];
                }
                store(sums[pending], sum);
                ties_of[pending] = ties;
                changed_of[pending] = byte_bits((U8)(old != now));
                first_of[pending] = k;
                pending += ties != 0;
                if (pending == kPending || k + kBytes >= half_) {
                    for (int i = 0; i < pending; ++i) {
                        for (uint64_t rest = ties_of[i]; rest; rest &= rest - 1) {
                            const int lane = __builtin_ctzll(rest);
                            const int64_t place = first_of[i] + lane;
                            tie_list.add(own + place, table_.threshold[sums[i][lane]], changed_of[i] >> lane & 1, &flips, id_,
                                         position + place - k);
                        }
                    }
                    if (tie_list.is_due(kPending * kBytes)) tie_list.settle(step);
                    pending = 0;
                }
                if (++since == 255) {
                    flips += add_bytes(changed);
                    changed = U8{};
                    since = 0;
                }
            }
            position -= (half_ + kBytes - 1) / kBytes * kBytes - half_;
            flips += add_bytes(changed);
        }
        tie_list.settle(step);
        return flips;
    }

private:
    static constexpr int kTiles = 3;

    EBM_HD int64_t parity(int64_t row) const {
        int64_t sum = 0;
        for (int d = p_.num_dims - 2; d >= 0; --d) {
            sum += row % p_.sides[d];
            row /= p_.sides[d];
        }
        return sum & 1;
    }

    // The other colour's entries in the neighbouring rows.
    EBM_HD int rows_beside(int64_t row, int colour, const int8_t* (&others)[2 * (kMaxLatticeDims - 1)]) const {
        int count = 0;
        int64_t stride = 1;
        for (int d = p_.num_dims - 2; d >= 0; --d) {
            int64_t place = row / stride % p_.sides[d];
            int64_t up = place + 1 == p_.sides[d] ? row - place * stride : row + stride;
            int64_t down = place == 0 ? row + (p_.sides[d] - 1) * stride : row - stride;
            others[count++] = spins_ + up * side_ + (1 - colour) * half_;
            others[count++] = spins_ + down * side_ + (1 - colour) * half_;
            stride *= p_.sides[d];
        }
        return count;
    }

    static EBM_HD U8 load_some(const int8_t* p, int64_t count) {
        if (count == kBytes) return load<U8>(p);
        uint8_t lanes[kBytes] = {};
        memcpy(lanes, p, static_cast<size_t>(count));
        return load<U8>(lanes);
    }

    static EBM_HD int64_t add_bytes(U8 counts) {
        uint8_t lanes[kBytes];
        store(lanes, counts);
        int64_t sum = 0;
        for (int i = 0; i < kBytes; ++i) sum += lanes[i];
        return sum;
    }

    EBM_HD void draw_bytes(const PhiloxRow<uint64_t>& constants, int64_t block, uint8_t* out) const {
        uint64_t order[2][kLanes / 2];
        for (int lane = 0; lane < kLanes; ++lane) order[lane % 2][lane / 2] = static_cast<uint64_t>(Tile<float>::order(lane));
        U64 c0[2 * kTiles], words[2 * kTiles][4];
        PhiloxRow<uint64_t> rows[2 * kTiles];
        EBM_UNROLL for (int i = 0; i < 2 * kTiles; ++i) {
            rows[i] = constants;
            c0[i] = load<U64>(order[i % 2]) + static_cast<uint64_t>(block + i / 2 * kLanes);
        }
        philox4x32<2 * kTiles>(c0, rows, key_, words);
        EBM_UNROLL for (int i = 0; i < kTiles; ++i) {
            F32 v[4];
            Tile<float>::values(words[2 * i], words[2 * i + 1], Words{}, v);
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                store(out + (4 * i + j) * kBytes, v[j]);
        }
    }

    struct Words {
        EBM_HD void operator()(const U32 (&w)[4], F32 (&v)[4]) const {
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                v[j] = as_float(w[j]);
        }
    };

    EBM_HD void interleave(const int8_t* first, const int8_t* second, int8_t* out) const {
        for (int64_t k = 0; k < half_; ++k) {
            out[2 * k] = first[k];
            out[2 * k + 1] = second[k];
        }
    }

    const IsingGibbsParams& p_;
    const SumTable table_;
    const PhiloxKey key_;
    const uint64_t id_;
    const int64_t side_, half_;
    int64_t num_rows_;
    int8_t* spins_;
};

}  // namespace
EBM_END

#endif
