// SPDX-License-Identifier: Apache-2.0

package report

import (
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

const whole = "k8s.cluster.name=c1,k8s.namespace.name=a,k8s.deployment.name=client,service.name=client-app,service.version=v1,cloud.region=r1,cloud.availability_zone=z1"

func TestBaggageOfAWorkload(t *testing.T) {
	if got := BaggageOf(client()).String(); got != whole {
		t.Error(got)
	}
	if got := BaggageOf(&mesh.Workload{}).String(); got != "" {
		t.Errorf("of an empty workload: %q", got)
	}
	for kind, want := range map[mesh.WorkloadType]string{
		mesh.Deployment: "k8s.deployment.name=w", mesh.CronJob: "k8s.cronjob.name=w", mesh.Pod: "k8s.pod.name=w", mesh.Job: "k8s.job.name=w",
	} {
		if got := BaggageOf(&mesh.Workload{WorkloadType: kind, WorkloadName: "w"}).String(); got != want {
			t.Errorf("%d: %q, want %q", kind, got, want)
		}
	}
}

func TestParseBaggage(t *testing.T) {
	for _, tc := range []struct {
		name    string
		headers []string
		want    Baggage
		ok      bool
	}{
		{"whole", []string{whole}, BaggageOf(client()), true},
		{"no header", nil, Baggage{}, false},
		{"an empty header", []string{""}, Baggage{}, true},
		{"empty values", []string{"service.name=,k8s.cluster.name="}, Baggage{}, true},
		{"several headers, the later wins", []string{"service.name=a,service.version=1", "service.name=b"}, Baggage{Service: "b", Revision: "1"}, true},
		{"a later empty one wins too", []string{"service.name=a,service.name"}, Baggage{}, true},
		{"a second = and what follows", []string{"service.name=a=b=c"}, Baggage{Service: "a"}, true},
		{"no trimming, no decoding", []string{"service.name= a%20,  service.version=1"}, Baggage{Service: " a%20"}, true},
		{"unknown and ill-formed members", []string{"x=y,,=,=z,service.name,K8S.cluster.name=c"}, Baggage{}, true},
		{"kinds of workload", []string{"k8s.pod.name=p,k8s.job.name=j"}, Baggage{Workload: "j", WorkloadType: mesh.Job}, true},
		{"cronjob", []string{"k8s.cronjob.name=p"}, Baggage{Workload: "p", WorkloadType: mesh.CronJob}, true},
		{"bytes that are no text drop everything", []string{"service.name=a", "service.version=\xc3\xa9"}, Baggage{}, false},
		{"so do control characters", []string{"service.name=a\x7f"}, Baggage{}, false},
		{"tabs are text", []string{"service.name=a\tb"}, Baggage{Service: "a\tb"}, true},
	} {
		got, ok := ParseBaggage(tc.headers)
		if got != tc.want || ok != tc.ok {
			t.Errorf("%s: %+v, %v", tc.name, got, ok)
		}
	}
}

func TestEveryPrefixOfBaggageIsRead(t *testing.T) {
	for i := range len(whole) {
		b, ok := ParseBaggage([]string{whole[:i]})
		if full := BaggageOf(client()); !ok || !strings.HasPrefix(full.Cluster, b.Cluster) || !strings.HasPrefix(full.Zone, b.Zone) {
			t.Errorf("%q: %+v, %v", whole[:i], b, ok)
		}
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add(whole)
	f.Add("service.name=a=b,k8s.job.name=j,,=")
	f.Add("\xff")
	f.Fuzz(func(t *testing.T, s string) {
		b, ok := ParseBaggage([]string{s})
		if !ok {
			if b != (Baggage{}) {
				t.Errorf("%q was refused and left %+v", s, b)
			}
			return
		}
		again, ok := ParseBaggage([]string{b.String()})
		b.WorkloadType, again.WorkloadType = 0, 0 // the key is lost with an empty name
		if !ok || again != b {
			t.Errorf("%q: %+v, and read again %+v", s, b, again)
		}
	})
}
