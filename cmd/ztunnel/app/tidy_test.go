// SPDX-License-Identifier: Apache-2.0

package app

import (
	"runtime"
	"testing"
)

func TestMemoryOfABurstIsGivenBackOnceItIsQuiet(t *testing.T) {
	d := newTidier()
	const size = 64 << 20
	junk := make([]byte, size)
	for i := 0; i < size; i += 4 << 10 {
		junk[i] = 1
	}
	d.look()
	_, before := d.read()
	if before < size {
		t.Fatalf("the process has %d bytes, of which %d are one slice", before, size)
	}
	runtime.KeepAlive(junk)
	allocs := d.allocs
	d.look() // nothing has happened since
	if _, after := d.read(); after+size/2 > before {
		t.Errorf("%d bytes before, and %d after", before, after)
	}
	if d.allocs-allocs > size {
		t.Error("it was not quiet")
	}
}
