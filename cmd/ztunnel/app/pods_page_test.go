// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
)

func TestThePodsPageSaysWhatIsWrongAndWas(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	status := inpod.Status{
		Pod:   inpod.Pod{UID: "u", Name: "p", Namespace: "ns", ServiceAccount: "sa"},
		State: inpod.StatePending, Err: errors.New("no cgroup"),
		LastErr: errors.New("no cgroup"), LastErrAt: now.Add(-1500 * time.Millisecond),
	}
	got, err := json.Marshal(podLineOf(status, now))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"uid":"u","name":"p","namespace":"ns","serviceAccount":"sa","state":"Pending","waiting":{"workload":0,"certificate":0,"policy":0,"answer":0,"expired":0},` +
		`"error":"no cgroup","lastError":{"error":"no cgroup","age":"1.5s"}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	status.Pod.Late = true
	if line := podLineOf(status, now); line.Late == nil {
		t.Error("a late pod is not shown as one")
	}
	checks := checkLines([]capture.Check{
		{Name: "dns", At: now.Add(-time.Second)}, {Name: "outbound", At: now, Err: errors.New("refused")},
	}, now)
	if want := []checkLine{{"dns", "ok", "1s"}, {"outbound", "refused", "0s"}}; !slices.Equal(checks, want) {
		t.Errorf("%+v", checks)
	}
}

func TestReadinessNamesThePodsThatAil(t *testing.T) {
	statuses := []inpod.Status{
		{Pod: inpod.Pod{Name: "well", Namespace: "ns"}, State: inpod.StateUp},
		{Pod: inpod.Pod{Name: "sick", Namespace: "ns"}, State: inpod.StateUp, Err: errors.New("outbound canary: refused")},
		{Pod: inpod.Pod{Name: "new", Namespace: "ns"}, State: inpod.StatePending},
	}
	want := []string{"ns/sick: Up: outbound canary: refused", "ns/new: Pending"}
	if got := ailing(statuses); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for i := range 20 {
		statuses = append(statuses, inpod.Status{Pod: inpod.Pod{Name: fmt.Sprint(i)}, State: inpod.StatePending})
	}
	if got := ailing(statuses); len(got) != maxAiling+1 || got[maxAiling] != "and 12 more" {
		t.Errorf("%q", got)
	}
}
