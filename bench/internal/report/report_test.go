package report

import (
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{7}, 7}, {nil, 0}} {
		if got := Median(tc.of); got != tc.want {
			t.Errorf("%v: %v", tc.of, got)
		}
	}
}

func TestMediansAndRatios(t *testing.T) {
	var runs []Run
	for _, rate := range []float64{100, 300, 200} {
		runs = append(runs, Run{"asynq/everysec", Figures{sustained: rate, "sustained.acks_per_s": rate}},
			Run{"callrelay/one/everysec/off", Figures{sustained: 2 * rate, "cpu_us.redis": 10, "sustained.ack_p50_ms": 1, "sustained.ack_p99_ms": 2.5, "sustained.ack_max_ms": 7}})
	}
	runs = append(runs, Run{"bare", Figures{"sustained.acks_per_s": 35000}})
	r := New(runs)
	if len(r.Rows) != 3 || len(r.Rows[1].Rounds) != 3 || r.Rows[1].Median[sustained] != 400 {
		t.Fatalf("%+v", r.Rows)
	}
	if len(r.Ratios) != 1 || r.Ratios[0].Ratio != 2 || r.Ratios[0].Wanted != 1.8 {
		t.Errorf("%+v", r.Ratios)
	}
	r.Machine = map[string]string{"processors": "2"}
	var out strings.Builder
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"processors 2;",
		"| relay                      | acks/s | delivered/s | lowest-highest | x asynq | x memory | ack p50 / p99 / max | delivery p50 / p99 / max |",
		"|----------------------------|-------:|",
		"| bare                       |  35000 |             |",
		"| callrelay/one/everysec/off |        |         400 |        200-600 |    2.00 |          |    1.00 / 2.5 / 7.0 |",
		"| relay                      | redis |\n|----------------------------|------:|\n| callrelay/one/everysec/off |    10 |\n",
		"| callrelay/one/everysec/off | asynq/everysec |  2.00 |   1.80 |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "Deliveries held") {
		t.Error("a table without any figure")
	}
}
