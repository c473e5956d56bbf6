"""How many pods KEDA and the HorizontalPodAutoscaler make of a group's lag, by their own rules.

Of KEDA: what its kafka scaler reports (pkg/scalers/kafka_scaler.go), when it wakes a target and lets it sleep
(pkg/scaling/executor/scale_scaledobjects.go), and its fallback (pkg/fallback/fallback.go and
pkg/scaling/scale_handler.go), as they are in 2.20.2; https://keda.sh/docs/2.20/scalers/apache-kafka/ documents the
fields.
Of the HorizontalPodAutoscaler: an external metric with an average value, its tolerance, and `behavior`, as
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ describes them.

Left out, because no ScaledObject here uses it: `partitionLimitation`, `idleReplicaCount`, scaling modifiers, policies
in percent. Triggers that are not Kafka's are left out as well: a stage that has one may get more pods than is said.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance, by default: what is nearer than this is left as it is."""

Object = Mapping[str, Any]
Offsets = Mapping[int, tuple[int | None, int]]
"""By partition: the group's committed offset (None: none), and the end of the log."""


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """What a trigger tells. `lag` is what the group is behind; `metric` what the autoscaler is given in its place."""

    lag: int
    metric: int
    active: bool


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """A kafka trigger. The defaults are KEDA's."""

    topic: str
    group: str
    name: str = ""
    lag_threshold: int = 10
    activation_lag_threshold: int = 0
    earliest: bool = False
    allow_idle_consumers: bool = False
    exclude_persistent_lag: bool = False
    zero_on_invalid_offset: bool = False
    limit_to_partitions_with_lag: bool = False
    even_distribution: bool = False

    def reported(self, offsets: Offsets, before: Offsets | None = None) -> Reported:
        """`before` is what was read the last time: a position that stands still may not count."""
        lags = {place: self._lag(place, offsets, before) for place in offsets}
        counted, lag = sum(one for one, _ in lags.values()), sum(one for _, one in lags.values())
        metric = counted
        if not self.allow_idle_consumers or self.limit_to_partitions_with_lag or self.even_distribution:
            most = len(offsets)
            if self.even_distribution:
                metric = self.lag_threshold * next(
                    (pods for pods in divisors(most) if pods * self.lag_threshold >= counted), most
                )
            if self.limit_to_partitions_with_lag:
                most = sum(one > 0 for one, _ in lags.values())
            if metric // self.lag_threshold > most:
                metric = most * self.lag_threshold
        return Reported(lag=lag, metric=metric, active=lag > self.activation_lag_threshold)

    def _lag(self, partition: int, offsets: Offsets, before: Offsets | None) -> tuple[int, int]:
        """What counts for the number of pods, and what counts for having any."""
        committed, end = offsets[partition]
        if committed is None:
            # With `earliest` all that was ever written, which retention may have taken long ago.
            lag = 0 if self.zero_on_invalid_offset else end if self.earliest else 1
            return lag, lag
        stands_still = before is not None and partition in before and before[partition][0] == committed
        return 0 if self.exclude_persistent_lag and stands_still else end - committed, end - committed

    def pods(self, metric: int, current: int) -> int:
        """What the autoscaler makes of it."""
        if current and abs(metric / (self.lag_threshold * current) - 1) <= TOLERANCE:
            return current
        return -(-metric // self.lag_threshold)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast pods may come, or go. In seconds; `policies` are so many pods in so long."""

    stabilization_s: float
    policies: list[tuple[int, float]]


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """A ScaledObject, as far as Kafka decides it."""

    target: str
    least: int
    most: int
    cooldown_s: float
    polling_s: float
    failure_threshold: int
    fallback: int
    up: Pace
    down: Pace
    triggers: list[Trigger]

    def pods(self, told: Sequence[Reported], current: int) -> int:
        """When all has settled: how many pods there will be if nothing changes. `current` decides what is within the
        tolerance; at 0 the first pod is KEDA's, and it goes on from there.
        """
        if not self.least and not any(one.active for one in told):
            return 0
        wanted = max(trigger.pods(one.metric, current) for trigger, one in zip(self.triggers, told, strict=True))
        return min(self.most, max(1, self.least, wanted))


def divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def scaled_objects(objects: Iterable[Object]) -> list[Scaled]:
    """Of the objects that kustomize has built."""
    return [_scaled(one["metadata"]["name"], one["spec"]) for one in objects if one["kind"] == "ScaledObject"]


def _scaled(name: str, spec: Object) -> Scaled:
    behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    fallback = spec.get("fallback", {})
    if fallback and fallback.get("behavior") != "currentReplicasIfHigher":
        raise ValueError(f"{name}: only the fallback currentReplicasIfHigher is known here")
    return Scaled(
        target=spec["scaleTargetRef"]["name"],
        least=spec.get("minReplicaCount", 0),
        most=spec.get("maxReplicaCount", 100),
        cooldown_s=spec.get("cooldownPeriod", 300),
        polling_s=spec.get("pollingInterval", 30),
        failure_threshold=fallback.get("failureThreshold", 0),
        fallback=fallback.get("replicas", 0),
        up=_pace(behavior.get("scaleUp", {}), stabilization_s=0),
        down=_pace(behavior.get("scaleDown", {}), stabilization_s=300),
        triggers=[
            _trigger(trigger.get("name", ""), trigger["metadata"])
            for trigger in spec["triggers"]
            if trigger["type"] == "kafka"
        ],
    )


def _pace(rules: Object, *, stabilization_s: float) -> Pace:
    policies = rules.get("policies", [])
    if not policies or any(policy["type"] != "Pods" for policy in policies):
        raise ValueError("only policies in pods are known here")
    return Pace(
        stabilization_s=rules.get("stabilizationWindowSeconds", stabilization_s),
        policies=[(policy["value"], policy["periodSeconds"]) for policy in policies],
    )


def _trigger(name: str, metadata: Mapping[str, str]) -> Trigger:
    def flag(field: str) -> bool:
        return metadata.get(field, "false") == "true"

    return Trigger(
        name=name,
        topic=metadata["topic"],
        group=metadata["consumerGroup"],
        lag_threshold=int(metadata.get("lagThreshold", "10")),
        activation_lag_threshold=int(metadata.get("activationLagThreshold", "0")),
        earliest=metadata.get("offsetResetPolicy", "latest") == "earliest",
        allow_idle_consumers=flag("allowIdleConsumers"),
        exclude_persistent_lag=flag("excludePersistentLag"),
        zero_on_invalid_offset=flag("scaleToZeroOnInvalidOffset"),
        limit_to_partitions_with_lag=flag("limitToPartitionsWithLag"),
        even_distribution=flag("ensureEvenDistributionOfPartitions"),
    )


class Autoscaler:
    """KEDA and the HorizontalPodAutoscaler over time: one look after the other. Times in seconds, of any clock.

    On a cluster KEDA looks every `polling_s`, and the autoscaler every 15 s by itself; here each look is both.
    """

    def __init__(self, scaled: Scaled, *, pods: int) -> None:
        self.pods = pods
        self._scaled = scaled
        self._active_at: float | None = None
        self._failures = 0
        self._wishes: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []

    def look(self, now: float, told: Sequence[Reported] | None) -> int:
        """How many pods there are to be from now on. None: brokers answer, and don't tell the lag. (Where none answers
        KEDA has no client to look with: then this isn't called, and nothing changes.)
        """
        scaled, before = self._scaled, self.pods
        self._failures = self._failures + 1 if told is None else 0
        if self._falls_back() or (told is not None and any(one.active for one in told)):
            self._active_at = now
            self.pods = self.pods or max(1, scaled.least)
        elif told is not None and not scaled.least and self._cooled_down(now):
            self.pods = 0
        if self.pods == before and before:
            self.pods = self._paced(now, self._wish(told))
        if self.pods != before:
            self._changes.append((now, self.pods - before))
        return self.pods

    def _falls_back(self) -> bool:
        """Which counts as active: a target that sleeps is woken by it."""
        return self._scaled.fallback > 0 and self._failures > self._scaled.failure_threshold

    def _cooled_down(self, now: float) -> bool:
        return self._active_at is None or now - self._active_at > self._scaled.cooldown_s

    def _wish(self, told: Sequence[Reported] | None) -> int:
        scaled = self._scaled
        if told is not None:
            quiet = not any(one.active for one in told)
            return max(1, scaled.least) if quiet else scaled.pods(told, self.pods)
        return min(scaled.most, max(self.pods, scaled.fallback)) if self._falls_back() else self.pods

    def _paced(self, now: float, wish: int) -> int:
        up, down = self._scaled.up, self._scaled.down
        self._wishes.append((now, wish))
        lowest = min(one for at, one in self._wishes if now - at <= up.stabilization_s)
        highest = max(one for at, one in self._wishes if now - at <= down.stabilization_s)
        if lowest > self.pods:
            return min(lowest, max(self._at_start(now, period_s) + pods for pods, period_s in up.policies))
        if highest < self.pods:
            return max(highest, min(self._at_start(now, period_s) - pods for pods, period_s in down.policies))
        return self.pods

    def _at_start(self, now: float, period_s: float) -> int:
        """Pods at the start of the period that ends now."""
        return self.pods - sum(change for at, change in self._changes if now - at < period_s)
