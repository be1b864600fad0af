package livetrain

import (
	"encoding/binary"
	"math/bits"
)

const (
	p1 = 11400714785074694791
	p2 = 14029467366897019727
	p3 = 1609587929392839161
	p4 = 9650029242287828579
	p5 = 2870177450012600261
)

// Hashed returns the id that a string is: XXH64 (seed 0) of its UTF-8 bytes, as a signed 64-bit integer.
func Hashed(text string) int64 {
	rest, hash := []byte(text), uint64(p5)
	if len(rest) >= 32 {
		one, two := uint64(p1), uint64(p2) // wraps, which constants may not
		lanes := [4]uint64{one + two, two, 0, -one}
		for ; len(rest) >= 32; rest = rest[32:] {
			for lane := range lanes {
				lanes[lane] = round(lanes[lane], binary.LittleEndian.Uint64(rest[8*lane:]))
			}
		}
		hash = 0
		for lane, by := range [4]int{1, 7, 12, 18} {
			hash += bits.RotateLeft64(lanes[lane], by)
		}
		for _, lane := range lanes {
			hash = (hash^round(0, lane))*p1 + p4
		}
	}
	hash += uint64(len(text))
	for ; len(rest) >= 8; rest = rest[8:] {
		hash = bits.RotateLeft64(hash^round(0, binary.LittleEndian.Uint64(rest)), 27)*p1 + p4
	}
	if len(rest) >= 4 {
		hash = bits.RotateLeft64(hash^uint64(binary.LittleEndian.Uint32(rest))*p1, 23)*p2 + p3
		rest = rest[4:]
	}
	for _, each := range rest {
		hash = bits.RotateLeft64(hash^uint64(each)*p5, 11) * p1
	}
	hash = (hash ^ hash>>33) * p2
	hash = (hash ^ hash>>29) * p3
	return int64(hash ^ hash>>32)
}

func round(lane, word uint64) uint64 { return bits.RotateLeft64(lane+word*p2, 31) * p1 }
