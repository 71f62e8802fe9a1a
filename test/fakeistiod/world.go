// SPDX-License-Identifier: Apache-2.0

package fakeistiod

import (
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/ztunnel-go/ztunnel/xds/pb/discoverypb"
)

// A World is a set of resources that is served as a real control plane serves
// it: whole to whoever subscribes to a type, by name to whoever asks so, and
// then as it changes.
type World struct {
	mu      sync.Mutex
	version int
	by      map[key]Resource
	streams map[*watcher]bool
}

type key struct{ typeURL, name string }

func newWorld() *World {
	return &World{by: map[key]Resource{}, streams: map[*watcher]bool{}}
}

// A watcher is a stream that the world is served to.
type watcher struct {
	mu    sync.Mutex
	dirty map[key]bool  // changed and not told yet
	bell  chan struct{} // capacity 1
}

// Put adds or replaces resources and pushes them, in one response for each
// type where nothing else is under way. Resources get the world's version
// unless they have one.
func (w *World) Put(resources ...Resource) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.version++
	var keys []key
	for _, r := range resources {
		if r.Version == "" {
			r.Version = "v" + strconv.Itoa(w.version)
		}
		k := key{r.Type, r.Name}
		w.by[k] = r
		keys = append(keys, k)
	}
	w.notify(keys)
}

// Remove removes resources and says so.
func (w *World) Remove(typeURL string, names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var keys []key
	for _, n := range names {
		delete(w.by, key{typeURL, n})
		keys = append(keys, key{typeURL, n})
	}
	w.notify(keys)
}

func (w *World) notify(keys []key) {
	for s := range w.streams {
		s.mu.Lock()
		for _, k := range keys {
			s.dirty[k] = true
		}
		s.mu.Unlock()
		select {
		case s.bell <- struct{}{}:
		default:
		}
	}
}

// about finds what names or aliases stand for. One may stand for several:
// istiod tells with a service of its workloads, which here have its names as
// aliases. The cost is one look at each resource, however many the names.
func (w *World) about(typeURL string, names []string) map[string][]Resource {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := make(map[string][]Resource, len(names))
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[n] = true
		if r, ok := w.by[key{typeURL, n}]; ok {
			found[n] = append(found[n], r)
		}
	}
	for k, r := range w.by {
		for _, alias := range r.Aliases {
			if k.typeURL == typeURL && alias != k.name && wanted[alias] {
				found[alias] = append(found[alias], r)
			}
		}
	}
	return found
}

func (w *World) names(typeURL string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for k := range w.by {
		if k.typeURL == typeURL {
			names = append(names, k.name)
		}
	}
	slices.Sort(names)
	return names
}

// A subscription is what a stream wants of one type.
type subscription struct {
	all   bool
	names map[string]bool
}

// serve answers a stream until it ends.
func (w *World) serve(st *Stream) error {
	self := &watcher{dirty: map[key]bool{}, bell: make(chan struct{}, 1)}
	w.mu.Lock()
	w.streams[self] = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.streams, self)
	}()

	requests, failed := st.receive()
	server := &serving{w: w, st: st, wants: map[string]*subscription{}}
	for {
		select {
		case req, ok := <-requests:
			if !ok {
				return failed()
			}
			if err := server.request(req); err != nil {
				return err
			}
		case <-self.bell:
			self.mu.Lock()
			dirty := self.dirty
			self.dirty = map[key]bool{}
			self.mu.Unlock()
			if err := server.changed(dirty); err != nil {
				return err
			}
		}
	}
}

// receive hands on requests until the stream ends, and then says why it did.
func (st *Stream) receive() (requests <-chan *discoverypb.DeltaDiscoveryRequest, failed func() error) {
	ch := make(chan *discoverypb.DeltaDiscoveryRequest)
	var end error
	go func() { // ends with the stream
		defer close(ch)
		for {
			req, err := st.Recv()
			if err != nil {
				end = err
				return
			}
			select {
			case ch <- req:
			case <-st.Done():
				end = st.grpc.Context().Err()
				return
			}
		}
	}()
	return ch, func() error { return end }
}

// serving is the server's side of one stream.
type serving struct {
	w     *World
	st    *Stream
	wants map[string]*subscription
	nonce int
}

func (s *serving) request(req *discoverypb.DeltaDiscoveryRequest) error {
	sub := s.wants[req.GetTypeUrl()]
	if sub == nil {
		return s.subscribe(req)
	}
	// As istiod: what changes no subscription is not answered, and of what does
	// all that is asked for is told.
	changed := false
	for _, n := range req.GetResourceNamesSubscribe() {
		changed = changed || !sub.names[n]
		sub.names[n] = true
	}
	for _, n := range req.GetResourceNamesUnsubscribe() {
		changed = changed || sub.names[n]
		delete(sub.names, n)
	}
	names := req.GetResourceNamesSubscribe()
	switch {
	case !changed:
		return nil // an answer to us
	case len(names) > 0:
		return s.tell(req.GetTypeUrl(), names)
	}
	// As istiod: what subscribes to nothing is told that all is gone.
	gone := slices.Sorted(maps.Keys(sub.names))
	clear(sub.names)
	s.nonce++
	return s.st.Send(Response(req.GetTypeUrl(), "n"+strconv.Itoa(s.nonce), nil, gone...))
}

// subscribe answers the first request of a type.
func (s *serving) subscribe(req *discoverypb.DeltaDiscoveryRequest) error {
	url := req.GetTypeUrl()
	sub := &subscription{names: map[string]bool{}}
	s.wants[url] = sub
	sub.all = !slices.Contains(req.GetResourceNamesUnsubscribe(), "*")
	known := slices.Sorted(maps.Keys(req.GetInitialResourceVersions()))
	for _, n := range known {
		sub.names[n] = true
	}
	names := known
	if sub.all {
		names = append(names, s.w.names(url)...)
		slices.Sort(names)
	} else if len(names) == 0 {
		return s.st.Headers()
	}
	return s.tell(url, slices.Compact(names))
}

func (s *serving) changed(dirty map[key]bool) error {
	byType := map[string][]string{}
	for k := range dirty {
		if sub := s.wants[k.typeURL]; sub != nil && (sub.all || sub.names[k.name]) {
			byType[k.typeURL] = append(byType[k.typeURL], k.name)
		}
	}
	for url, names := range byType {
		slices.Sort(names)
		if err := s.tell(url, names); err != nil {
			return err
		}
	}
	return nil
}

// tell sends what the names are now, or that they are gone.
func (s *serving) tell(url string, names []string) error {
	var resources []Resource
	var removed []string
	told := map[string]bool{}
	found := s.w.about(url, names)
	for _, n := range names {
		if len(found[n]) == 0 {
			removed = append(removed, n)
			delete(s.wants[url].names, n)
		}
		for _, r := range found[n] {
			s.wants[url].names[r.Name] = true // which n may be but an alias of
			if !told[r.Name] {
				told[r.Name] = true
				resources = append(resources, r)
			}
		}
	}
	s.nonce++
	return s.st.Send(Response(url, "n"+strconv.Itoa(s.nonce), resources, removed...))
}
