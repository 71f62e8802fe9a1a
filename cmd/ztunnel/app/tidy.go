// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// tidyEvery is how often the process looks at its memory.
	tidyEvery = 2 * time.Second
	// quietBytes allocated between two looks are little enough to call it idle.
	quietBytes = 1 << 20
	// tidyGain is how much more the process must have than when it was tidied
	// last, for another time to be worth its work: some collections.
	tidyGain = 4 << 20
	// tidyTimes is how many there are at most: a stack of 32 KiB is small after
	// four. They end when one gains less than tidyStep.
	tidyTimes = 6
	tidyStep  = 1 << 20
)

// A tidier gives back to the system what a burst of work has left: garbage that
// nothing collects as long as nothing is allocated, and stacks that were deep
// once and shrink by half with each collection. The runtime itself would do so
// after two minutes, and again.
type tidier struct {
	samples []metrics.Sample
	allocs  uint64 // at the last look
	tidied  uint64 // what the process had when it was tidied last
}

func newTidier() *tidier {
	return &tidier{samples: []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}}
}

// look tidies if nothing much has happened since the last look and there is
// something to gain.
func (t *tidier) look() {
	allocs, held := t.read()
	quiet := allocs-t.allocs < quietBytes
	t.allocs = allocs
	if !quiet || held < t.tidied+tidyGain {
		t.tidied = min(t.tidied, held)
		return
	}
	for range tidyTimes {
		debug.FreeOSMemory()
		t.allocs, t.tidied = t.read()
		if t.tidied+tidyStep > held {
			return
		}
		held = t.tidied
	}
}

// read returns what was ever allocated, and what the runtime has of the system.
func (t *tidier) read() (allocs, held uint64) {
	metrics.Read(t.samples)
	return t.samples[0].Value.Uint64(), t.samples[1].Value.Uint64() - t.samples[2].Value.Uint64()
}

// startTidying has the process look after its memory until it is closed.
func (n *node) startTidying(context.Context) error {
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { // ends with stop
		t, tick := newTidier(), time.NewTicker(tidyEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				t.look()
			}
		}
	})
	n.onClose("memory", func() error {
		close(stop)
		running.Wait()
		return nil
	})
	return nil
}
