# The gateway's users notice these faults. The nodes' own alarms are in ../../../prometheus.
# https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-cloudwatch-metrics.html

locals {
  alarms = {
    # The service answered 5xx, for instance because a request through NATS failed.
    service-5xx = {
      description = "The service of ${var.name} answers requests with 5xx."
      metric      = "HTTPCode_Target_5XX_Count"
      statistic   = "Sum"
      threshold   = var.alarm_5xx
      minutes     = 5
      dimensions  = { LoadBalancer = aws_lb.gateway.arn_suffix, TargetGroup = aws_lb_target_group.gateway.arn_suffix }
    }
    # The load balancer answered 5xx itself, for instance because no task is healthy.
    load-balancer-5xx = {
      description = "The load balancer of ${var.name} answers requests with 5xx itself."
      metric      = "HTTPCode_ELB_5XX_Count"
      statistic   = "Sum"
      threshold   = var.alarm_5xx
      minutes     = 5
      dimensions  = { LoadBalancer = aws_lb.gateway.arn_suffix }
    }
    unhealthy-hosts = {
      description = "A task of ${var.name} fails its health check."
      metric      = "UnHealthyHostCount"
      statistic   = "Maximum"
      threshold   = 1
      minutes     = 3
      dimensions  = { LoadBalancer = aws_lb.gateway.arn_suffix, TargetGroup = aws_lb_target_group.gateway.arn_suffix }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "gateway" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = "AWS/ApplicationELB"
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = each.value.threshold
  period              = 60
  evaluation_periods  = each.value.minutes
  datapoints_to_alarm = min(each.value.minutes, 3)
  # A minute without an error has no value.
  treat_missing_data = "notBreaching"
  alarm_actions      = var.alarm_actions
  ok_actions         = var.alarm_actions
}
